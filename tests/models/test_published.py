"""Checkpoints in each published layout load strictly, and then say what their papers' equations say."""

import argparse
import os
from pathlib import Path

import pytest
import timm
import torch

from kdpipe.errors import TeacherError
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.models.converters import from_published
from kdpipe.models.shapes import on_meta
from tests.models import layouts, reference
from tests.models.layouts import State
from tests.models.small import CLASSES, DEPTHS, DIMS, FAMILIES, difference, images


def training_file(state: State, path: Path, **more: object) -> str:
    """As SLaK's and RepLKNet's scripts save."""
    args = argparse.Namespace(model="SLaK_tiny", kernel_size=["51", "49", "47", "13", "5"], lr=4e-3, resume=None)
    optimizer = {"state": {0: {"step": 5, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"model": state, "optimizer": optimizer, "epoch": 299, "scaler": {"scale": 65536.0}, "args": args}
    torch.save({**content, **more}, path)
    return str(path)


LAYOUTS = {
    "slak": ("slak", {}, {}),
    "slak_early": ("slak", {"stripes": "Decom"}, {}),
    "slak_square": ("slak", {"stripes": None}, {"decomposed": False}),
    "slak_31": ("slak", {"kernels": (31, 29, 27, 13)}, {"kernel_sizes": [31, 29, 27, 13]}),
    "replknet": ("replknet", {}, {}),
    "replknet_merged": ("replknet", {"merged": True}, {"merged": True}),
    "unireplknet": ("unireplknet", {}, {}),
    "unireplknet_merged": ("unireplknet", {"merged": True}, {"merged": True}),
}


@pytest.mark.parametrize(("name", "changes", "implied"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_published_checkpoint_simply_loads(name: str, changes: dict, implied: dict, tmp_path):
    family = FAMILIES[name]
    state = family.state(**changes)
    file = training_file(state, tmp_path / "published.pth")
    built = build(ModelConfig(model=family.model, model_kwargs=family.kwargs, weights=file, num_classes=CLASSES))
    assert built.kwargs == {**family.kwargs, **implied}
    with torch.no_grad():
        assert difference(built.module.eval()(images()), family.forward(state, images())) < 1e-5


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "arch": "x"},
        lambda s: {f"module.{key}": value for key, value in s.items()},
    ],
)
def test_bare_or_wrapped(wrap, tmp_path):
    family = FAMILIES["unireplknet"]
    state = family.state()
    torch.save(wrap(state), tmp_path / "w.pth")
    config = ModelConfig(
        model=family.model, model_kwargs=family.kwargs, weights=str(tmp_path / "w.pth"), num_classes=CLASSES
    )
    with torch.no_grad():
        assert difference(build(config).module.eval()(images()), family.forward(state, images())) < 1e-5


def test_replknet_without_small_kernels(tmp_path):
    kernels = (27, 15, 9, 5)
    state = layouts.replknet(DIMS, DEPTHS, kernels, small=None, ratio=1.5, classes=CLASSES)
    file = training_file(state, tmp_path / "xl.pth")
    arch = {"dims": DIMS, "depths": DEPTHS, "kernel_sizes": kernels}
    built = build(ModelConfig(model="replknet_xl", model_kwargs=arch, weights=file, num_classes=CLASSES))
    with torch.no_grad():
        assert difference(built.module.eval()(images()), reference.replknet(state, images())) < 1e-5


@pytest.mark.parametrize("variant", ["convnext_tiny", "convnext_small"])
def test_the_distilled_convnext_goes_into_timms(variant: str, tmp_path):
    state = layouts.distilled_convnext(DIMS, DEPTHS, CLASSES)
    file = training_file(state, tmp_path / "l2s.pth")
    arch = {"dims": DIMS, "depths": DEPTHS}
    built = build(ModelConfig(model=variant, model_kwargs=arch, weights=file, num_classes=CLASSES))
    assert type(built.module) is timm.models.ConvNeXt
    with torch.no_grad():
        assert difference(built.module.eval()(images()), reference.slak(state, images())) < 1e-6


S_LARGE = tuple((13, 3, 3)[j % 3] for j in range(27))
WHOLE = [
    ("slak_tiny", lambda: layouts.slak((124, 249, 499, 998), (3, 3, 9, 3))),
    pytest.param("slak_base", lambda: layouts.slak((166, 332, 665, 1331), (3, 3, 27, 3)), marks=pytest.mark.slow),
    ("convnext_tiny", lambda: layouts.distilled_convnext((96, 192, 384, 768), (3, 3, 9, 3))),
    ("replknet_31b", lambda: layouts.replknet((128, 256, 512, 1024), (2, 2, 18, 2), (31, 29, 27, 13))),
    (
        "replknet_31l.in22k",
        lambda: layouts.replknet((192, 384, 768, 1536), (2, 2, 18, 2), (31, 29, 27, 13), classes=21841),
    ),
    (
        "replknet_xl",
        lambda: layouts.replknet((256, 512, 1024, 2048), (2, 2, 18, 2), (27, 27, 27, 13), None, 1.5),
    ),
    (
        "unireplknet_a",
        lambda: layouts.unireplknet((40, 80, 160, 320), ((3,) * 2, (13,) * 2, (13,) * 6, (13,) * 2)),
    ),
    (
        "unireplknet_t",
        lambda: layouts.unireplknet((80, 160, 320, 640), ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3)),
    ),
    pytest.param(
        "unireplknet_b.in22k",
        lambda: layouts.unireplknet((128, 256, 512, 1024), ((3,) * 3, (13,) * 3, S_LARGE, (13,) * 3), 21841),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("name", "state"), WHOLE)
def test_every_key_of_the_published_models(name: str, state):
    own = on_meta(name).state_dict()
    with torch.device("meta"):
        got = from_published(state())
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in own.items()}


def test_timm_itself_loads_a_published_file(tmp_path):
    family = FAMILIES["unireplknet"]
    state = family.state(classes=CLASSES)
    file = training_file(state, tmp_path / "hub.pth")
    model = family.make(pretrained=True, pretrained_cfg_overlay={"file": file, "num_classes": CLASSES}).eval()
    with torch.no_grad():
        assert difference(model(images()), family.forward(state, images())) < 1e-5


class Runs:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-the-checkpoint",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training_file(FAMILIES["slak"].state(), tmp_path / "evil.pth", args=argparse.Namespace(hook=Runs()))
    with pytest.raises(TeacherError, match="can't be read without running code") as caught:
        build(ModelConfig(model="slak_tiny", weights="evil.pth"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made-by-the-checkpoint").exists()


class TestCheckpointKey:
    def config(self, tmp_path: Path, **changes: object) -> ModelConfig:
        family = FAMILIES["slak"]
        average = {key: value * 2 for key, value in family.state().items()}
        file = training_file(family.state(), tmp_path / "both.pth", model_ema=average)
        return ModelConfig(model="slak_tiny", model_kwargs=family.kwargs, weights=file, num_classes=CLASSES, **changes)

    def test_model_is_what_the_paper_evaluates(self, tmp_path):
        head = build(self.config(tmp_path)).module.head.fc.weight
        assert torch.equal(head, FAMILIES["slak"].state()["head.weight"])

    def test_another_entry(self, tmp_path):
        head = build(self.config(tmp_path, checkpoint_key="model_ema")).module.head.fc.weight
        assert torch.equal(head, FAMILIES["slak"].state()["head.weight"] * 2)

    def test_no_such_entry(self, tmp_path):
        with pytest.raises(TeacherError, match=r"no such entry; found state_dict; allowed: model, .*model_ema"):
            build(self.config(tmp_path, checkpoint_key="state_dict"))

    def test_without_weights(self):
        with pytest.raises(TeacherError, match=r"checkpoint_key is about a file of weights.* Pass --weights"):
            build(ModelConfig(model="slak_nano", checkpoint_key="model"))
