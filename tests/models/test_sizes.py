"""Parameters and multiply-adds as published."""

import pytest
import timm
import torch
from torch import nn

import kdpipe.models.build  # noqa: F401  (registers the networks)
from kdpipe.models.shapes import on_meta

# Millions of parameters as trained and billions of multiply-adds for an image of a side. `within` is half a unit of
# the last published digit.
TRAINED = [
    ("slak_tiny", 50.70, 0.005, 8.7, 224),
    ("slak_small", 91.13, 0.005, 16.6, 224),
    pytest.param("slak_base", 157.95, 0.005, 28.5, 224, marks=pytest.mark.slow),
    ("replknet_31b", 79.86, 0.005, None, 224),
    ("replknet_31l", 172.67, 0.005, None, 224),
    ("replknet_xl", 335, 0.5, 128.7, 320),
    ("unireplknet_n", 18.8, 0.05, None, 224),
    ("unireplknet_t", 31.7, 0.05, None, 224),
    ("unireplknet_s", 56.5, 0.05, None, 224),
]
# The same as merged; RepLKNet with its BatchNorms, and its 79.5 are published cut to 79.
MERGED = [
    ("replknet_31b", 79.5, 0.05, 15.3, 224),
    ("replknet_31b", 79.5, 0.05, 45.1, 384),
    ("replknet_31l", 172, 0.5, 96.0, 384),
    ("unireplknet_a", 4.4, 0.05, 0.6, 224),
    ("unireplknet_f", 6.2, 0.05, 0.9, 224),
    ("unireplknet_p", 10.7, 0.055, 1.6, 224),
    ("unireplknet_n", 18.3, 0.05, 2.8, 224),
    ("unireplknet_t", 31, 0.5, 4.9, 224),
    ("unireplknet_s", 56, 0.5, 9.1, 224),
    pytest.param("unireplknet_b", 98, 0.5, 47.2, 384, marks=pytest.mark.slow),
    pytest.param("unireplknet_l", 218, 0.5, 105.4, 384, marks=pytest.mark.slow),
    pytest.param("unireplknet_xl", 386, 0.5, 187, 384, marks=pytest.mark.slow),
]


def check(name: str, millions: float, within: float, gmac: float | None, side: int, **kwargs: object) -> None:
    model = on_meta(name, **kwargs)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=within, rel=0.005)
    if gmac is None:
        return
    total = 0

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        total += out.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    assert total / 1e9 == pytest.approx(gmac, abs=0.05, rel=0.005)


@pytest.mark.parametrize(("name", "millions", "within", "gmac", "side"), TRAINED)
def test_as_trained(name: str, millions: float, within: float, gmac: float | None, side: int):
    check(name, millions, within, gmac, side)


@pytest.mark.parametrize(("name", "millions", "within", "gmac", "side"), MERGED)
def test_as_merged(name: str, millions: float, within: float, gmac: float, side: int):
    check(name, millions, within, gmac, side, merged=True)


def test_the_nano_is_small_and_takes_small_images():
    model = timm.create_model("slak_nano", num_classes=10).eval()
    assert 0.25e6 < sum(p.numel() for p in model.parameters()) < 0.35e6
    for side in (8, 16, 32, 64):
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 10)
        assert model.forward_features(torch.zeros(1, 3, side, side)).shape == (1, 120, side // 8, side // 8)
