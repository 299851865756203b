"""Our networks are timm models: what timm's own tests ask of its models, at small size."""

import copy

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import param_groups_layer_decay

from tests.models.small import DIMS, FAMILIES, SIDE, Small, images, shuffled

NAMES = [
    *("slak_nano", "slak_tiny", "slak_small", "slak_base"),
    *("replknet_31b", "replknet_31l", "replknet_xl"),
    *(f"unireplknet_{letter}" for letter in ("a", "f", "p", "n", "t", "s", "b", "l", "xl")),
]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def test_all_are_registered():
    found = [name for family in FAMILIES for name in timm.list_models(module=family)]
    assert sorted(found) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_eats(name: str):
    cfg = timm.get_pretrained_cfg(name)
    feed = resolve_data_config({}, pretrained_cfg=cfg.to_dict())
    assert feed["interpolation"] == "bicubic"
    assert feed["mean"] == ((0.5, 0.5, 0.5) if name == "replknet_xl" else (0.485, 0.456, 0.406))
    if name != "slak_nano":
        assert cfg.license in ("mit", "apache-2.0")
        assert cfg.paper_ids.startswith("arXiv:")
        assert feed["crop_pct"] == (1.0 if feed["input_size"][-1] >= 384 else 0.875)


def test_heads_of_22k_classes_and_sides_are_told_apart_by_tag():
    assert timm.get_pretrained_cfg("unireplknet_l.in22k").num_classes == 21841
    assert timm.get_pretrained_cfg("unireplknet_l.in22k").input_size == (3, 192, 192)
    assert timm.get_pretrained_cfg("unireplknet_l").input_size == (3, 384, 384)
    assert timm.get_pretrained_cfg("replknet_31b.in1k_384").crop_mode == "squash"


def test_what_cannot_be_fetched_is_not_made_up():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("slak_nano", pretrained=True)


@families
def test_forward_and_backward(family: Small):
    model = family.make(drop_path_rate=0.1).train()
    out = model(images())
    assert out.shape == (2, 7)
    out.mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


@families
def test_features_and_head_make_the_whole(family: Small):
    model = shuffled(family.make())
    with torch.no_grad():
        final = model.forward_features(images())
        assert final.shape == (2, DIMS[-1], SIDE // 32, SIDE // 32)
        assert torch.equal(model.forward_head(final), model(images()))
        pooled = model.forward_head(final, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        assert torch.allclose(model.get_classifier()(pooled), model(images()), atol=1e-6)
        again, maps = model.forward_intermediates(images(), indices=[1, 3], norm=True)
        assert torch.equal(again, final)
        assert torch.equal(maps[1], final)
        assert [m.shape[1] for m in maps] == [DIMS[1], DIMS[3]]
        first = model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
        assert first[0].shape == (2, DIMS[0], SIDE // 4, SIDE // 4)


@families
def test_features_only(family: Small):
    model = family.make(features_only=True).eval()
    with torch.no_grad():
        maps = model(images())
    assert [m.shape for m in maps] == [
        (2, dim, SIDE // r, SIDE // r) for dim, r in zip(DIMS, (4, 8, 16, 32), strict=True)
    ]
    assert model.feature_info.channels() == list(DIMS)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        assert [m.shape[1] for m in family.make(features_only=True, out_indices=(1, 2)).eval()(images())] == [12, 16]


@families
def test_the_classifier_is_reset(family: Small):
    model = family.make().eval()
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    assert model.num_classes == model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, model.num_features, SIDE // 32, SIDE // 32)


@families
def test_other_channels_and_no_classifier(family: Small):
    assert family.make(in_chans=1).eval()(torch.zeros(1, 1, SIDE, SIDE)).shape == (1, 7)
    assert family.make(num_classes=0).eval()(images()).shape == (2, DIMS[-1])


@families
def test_gradient_checkpointing_gives_the_same_gradients(family: Small):
    plain = shuffled(family.make()).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(images()).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6), name


@families
def test_drop_path_rises_through_the_network(family: Small):
    rates = [
        m.drop_prob
        for n, m in family.make(drop_path_rate=0.6).named_modules()
        if n.endswith("drop_path") and hasattr(m, "drop_prob")
    ]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.6)
    assert 0 < rates[0] <= 0.2


@families
def test_layers_have_groups(family: Small):
    model = family.make()
    for coarse in (False, True):
        groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
        assert len(groups) > 4
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    assert len({g["lr_scale"] for g in groups}) > 4


def test_dilation_in_place_of_stride():
    model = FAMILIES["slak"].make(output_stride=16).eval()
    assert model.forward_features(images()).shape[-2:] == (SIDE // 16, SIDE // 16)


def test_wrong_kernels_are_refused():
    with pytest.raises(ValueError, match="3 entries for 4 stages"):
        FAMILIES["slak"].make(kernel_sizes=(5, 5, 5))
    with pytest.raises(ValueError, match="kernels are 3 or 13, not 9"):
        FAMILIES["unireplknet"].make(kernel_sizes=((3,), (9,), (13,), (13,)))
