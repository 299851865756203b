"""A poor teacher: one line for each sign, at the end of cache-teacher and plan; --strict makes them errors."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kdpipe import cache_teacher
from kdpipe._util import tensors
from kdpipe.cache import Cache, Store
from kdpipe.caching.output_checks import remedy
from kdpipe.caching.poor_teacher import after_run, before_run
from kdpipe.errors import TeacherError
from kdpipe.models import METADATA_KEY
from kdpipe.shards import Index
from kdpipe.teacher import TeacherConfig
from tests.stages.running import Result, kdpipe
from tests.tiny import CLASSES, SETTINGS, SIZE, World

MEANS = {"teacher_top1": 0.8, "retained_mass": 0.9}
TEACHER = [
    *("--teacher", "tests.tiny:network", "--input-size", SIZE, "--batch-size", 16, "--set", "teacher.threads=1"),
    *("--set", "teacher.mean=[0.5,0.5,0.5]", "--set", "teacher.std=[0.25,0.25,0.25]", "--set", "views.crop_pct=1"),
]


class Uniform(nn.Module):
    """Equal logits for all classes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight, self.num_classes = nn.Parameter(torch.zeros(num_classes)), num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.repeat(len(x), 1)


def uniform(num_classes: int = CLASSES) -> nn.Module:
    return Uniform(num_classes)


def run(world: World, command: str, *words: object) -> Result:
    return kdpipe(command, "--index", world.index_path, *TEACHER, "--num-classes", CLASSES, *words)


def after(labelled: int = 1000, config: TeacherConfig | None = None, classes: int = 10, **means: float) -> list[str]:
    return after_run(MEANS | means, labelled, config or TeacherConfig(model="resnet18"), classes)


class TestAfter:
    def test_a_good_one(self):
        assert after() == []

    @pytest.mark.parametrize(
        ("top1", "labelled", "classes", "poor"),
        [
            (0.1, 1000, 10, True),
            (0.0, 1000, 10, True),
            (0.3, 1000, 10, False),
            (0.1, 20, 10, False),  # too few to know
            (0.52, 10_000, 2, True),
            (0.7, 10_000, 2, False),
            (0.001, 10**6, 1000, True),
            (0.01, 10**6, 1000, False),
        ],
    )
    def test_near_chance(self, top1: float, labelled: int, classes: int, poor: bool):
        lines = after(labelled, classes=classes, teacher_top1=top1)
        assert [line for line in lines if "near chance" in line] == lines
        assert len(lines) == poor

    @pytest.mark.parametrize(("mass", "poor"), [(0.49, True), (0.51, False), (None, False)])
    def test_retained_mass(self, mass: float | None, poor: bool):
        assert ["the kept classes have 0.49 of the probability" in line for line in after(retained_mass=mass)] == [
            True
        ] * poor

    @pytest.mark.parametrize(("top1", "poor"), [(0.5, True), (0.7, False)])
    def test_the_accuracy_that_the_weights_record(self, tmp_path: Path, top1: float, poor: bool):
        weights = tmp_path / "w.safetensors"
        tensors.write(weights, {"a": torch.zeros(1)}, METADATA_KEY, {"evaluation": {"top1": 0.9}})
        lines = after(config=TeacherConfig(weights=str(weights)), teacher_top1=top1)
        assert ["is 50.00 %, its file records 90.00 %" in line for line in lines] == [True] * poor

    def test_no_labels(self):
        assert after(0, teacher_top1=None) == []


class TestBefore:
    def lines(self, index: Index, classes: int = CLASSES, **settings: object) -> list[str]:
        return before_run(TeacherConfig.model_validate(settings), classes, index, strict=False)

    def test_another_mean(self, world: World):
        index = Index.open(world.index_path)
        assert self.lines(index, model="resnet18") == []
        own = timm.get_pretrained_cfg("resnet18").mean
        assert self.lines(index, model="resnet18", mean=own) == []
        (line,) = self.lines(index, model="resnet18", mean=(0.5, 0.5, 0.5))
        assert line == "teacher.mean is 0.5, 0.5, 0.5, the model's own 0.485, 0.456, 0.406: leave it out"

    def test_a_header_says_better_than_timm(self, world: World, tmp_path: Path):
        weights, half = str(tmp_path / "w.safetensors"), [0.5] * 3
        tensors.write(weights, {"a": torch.zeros(1)}, METADATA_KEY, {"model": "resnet18", "mean": half, "std": half})
        index = Index.open(world.index_path)
        assert self.lines(index, weights=weights, mean=half) == []
        (line,) = self.lines(index, weights=weights, std=(0.2, 0.2, 0.2))
        assert "teacher.std is 0.2, 0.2, 0.2, the model's own 0.5, 0.5, 0.5" in line

    def test_another_number_of_classes(self, world: World, monkeypatch):
        index = Index.open(world.index_path)
        monkeypatch.setattr(Index, "num_classes", 5)
        (line,) = self.lines(index, 9, model="resnet18")
        assert line.startswith("the teacher has 9 classes, the index 5: are its classes the labels'?")


UNIFORM = ["--teacher", "tests.caching.test_poor_teacher:uniform", "--k", 2]


class TestCommands:
    def test_cache_teacher_remarks(self, world: World, tmp_path: Path):
        result = run(world, "cache-teacher", *UNIFORM, "--out", tmp_path / "c")
        assert result.code == 0
        remarks = [line for line in result.err.splitlines() if line.startswith("remark: ")]
        assert "the kept classes have 0.29 of the probability" in remarks[-1]

    def test_strict_keeps_the_cache(self, world: World, tmp_path: Path):
        result = run(world, "cache-teacher", *UNIFORM, "--out", tmp_path / "c", "--strict", "--json")
        assert result.code == 2
        assert result.err.splitlines()[-1].startswith("error: ")
        assert "Without --strict it is a remark" in result.err
        assert json.loads(result.out)["remarks"]
        assert len(Cache(Store(tmp_path / "c")).commits) > 0

    def test_strict_refuses_before_what_is_known_before(self, world: World, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(Index, "num_classes", CLASSES + 1)
        result = run(world, "cache-teacher", "--out", tmp_path / "c", "--strict")
        assert result.code == 2
        assert f"the teacher has {CLASSES} classes, the index {CLASSES + 1}" in result.err
        assert not (tmp_path / "c").exists()

    @pytest.mark.parametrize("strict", [False, True])
    def test_plan(self, world: World, strict: bool):
        words = [*UNIFORM, "--seconds", 1, "--json", *(["--strict"] if strict else [])]
        result = run(world, "plan", *words)
        assert any("the kept classes have 0.29" in remark for remark in json.loads(result.out)["remarks"])
        assert result.code == 2 * strict


def test_the_advice_on_nan_fits_the_dtype():
    assert remedy("float16").startswith("Use --amp-dtype bfloat16 or float32")
    assert remedy("bfloat16").startswith("Use --amp-dtype float32")
    assert remedy("float32").startswith("The weights are broken")


@pytest.mark.parametrize("strict", [False, True])
def test_the_function(world: World, tmp_path: Path, strict: bool):
    config = SETTINGS | {"model": "tests.caching.test_poor_teacher:uniform"}
    words = Index.open(world.index_path), TeacherConfig.model_validate(config), tmp_path / "c", [0]
    with pytest.raises(TeacherError, match=r"near chance .*and 1 more") if strict else nullcontext():
        report = cache_teacher(*words, targets={"k": 2}, caching={"strict": strict})
        assert "kept classes have 0.29" in report.remarks[-1]
    assert len(Cache(Store(tmp_path / "c")).commits) > 0
