"""Outputs that can't be kept: refused before the run, or the one task that has them fails and leaves nothing behind."""

import json
import re

import pytest
import torch
from torch import nn

from kdpipe.cache import Store
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import TargetsError, TeacherError
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.verification import check_integrity
from tests.caching.featured import live
from tests.stages.running import kdpipe, refused
from tests.tiny import CLASSES, SETTINGS, VIEWS, make_cache, make_world, network, teacher


class Sudden(nn.Module):
    """Logits 10^power times as large for images whose mean is this one, or for all without a mean."""

    def __init__(self, power: int, mean: float | None, num_classes: int) -> None:
        super().__init__()
        self.factor, self.mean, self.inner = 10.0 ** (power / 2), mean, network(num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = torch.ones(len(x)) if self.mean is None else (mean_of(x) - self.mean).abs() < 1e-6
        factor = torch.where(chosen > 0, self.factor, 1.0)[:, None]
        return self.inner(x) * factor * factor


class Mean(nn.Module):
    """Says the mean of each image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight, self.num_classes = nn.Parameter(torch.ones(1)), num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_of(x)[:, None].repeat(1, self.num_classes) * self.weight


def mean_of(x: torch.Tensor) -> torch.Tensor:
    return x.double().mean((1, 2, 3)).float()


def sudden(power: int, mean: float | None = None, num_classes: int = CLASSES) -> nn.Module:
    return Sudden(power, mean, num_classes)


def means(num_classes: int = CLASSES) -> nn.Module:
    return Mean(num_classes)


def settings(power: int, mean: float | None = None) -> dict[str, object]:
    return {"model": "tests.caching.test_overflow:sudden", "model_kwargs": {"power": power, "mean": mean}}


def flags(power: int) -> list[object]:
    return [w for k, v in (SETTINGS | settings(power)).items() for w in ("--set", f"teacher.{k}={json.dumps(v)}")]


@pytest.fixture(scope="module")
def one_image(world) -> float:
    """Mean of one image of the second shard, as the teacher sees its view 0."""
    return float(live(world, 0, VIEWS, teacher(model="tests.caching.test_overflow:means")).logits[50, 0])


@pytest.mark.parametrize(
    ("power", "options", "line"),
    [
        (6, (), r"a log-probability is too large for the cache's dtype.*65504 in float16.*--dtype float32"),
        (6, ("--targets", "dense"), r"a logit is too large for the cache's dtype.*65504 in float16.*--dtype float32"),
        (39, (), r"NaN or infinity.*The weights are broken, or .*: it is computed in float32 already"),
        (39, ("--amp-dtype", "bfloat16"), r"NaN or infinity\. Use --amp-dtype float32"),
        (39, ("--amp-dtype", "float16"), r"NaN or infinity\. Use --amp-dtype bfloat16 or float32"),
    ],
)
@pytest.mark.parametrize("command", ["cache-teacher", "plan"])
def test_refused_before_the_run(world, tmp_path, command, power, options, line):
    out = () if command == "plan" else ("--out", tmp_path / "c")
    said = refused(command, "--index", world.index_path, *flags(power), *options, *out)
    assert re.search(line, said), said
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_task_fails_and_leaves_nothing(world, tmp_path, one_image, dtype):
    who = teacher(**settings(6, one_image))
    targets = TargetsConfig(k=CLASSES, dtype=dtype)
    cache, report = cache_views(str(tmp_path / "c"), world.index, VIEWS, who, targets, [0])
    if dtype == "float32":
        assert (report.tasks, report.failed) == (3, [])
        return
    assert report.tasks == 2
    [failed] = report.failed
    assert failed.task.shard.name == "shard-0001.tar"
    assert isinstance(failed.error, TeacherError)
    assert "65504 in float16" in str(failed.error)
    assert "\n" not in str(failed.error)
    assert check_integrity(Store(cache.store.url))[0] == []
    assert kdpipe("verify", cache.store.url, "--trust", __name__).code == 0


def test_losses_that_are_not_finite_fail_the_task_before_it_is_written(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpipe.caching.task.quality", lambda *_: Quality(views=1, kl=float("inf")))
    who = teacher()
    _, report = cache_views(
        str(tmp_path / "c"), world.index, VIEWS, who, TargetsConfig(k=2), [0], caching=CachingConfig(render_threads=1)
    )
    assert [type(outcome.error) for outcome in report.failed] == [TargetsError] * 3
    assert check_integrity(Store(tmp_path / "c"))[0] == []


def test_the_label_of_an_unlabelled_view_is_no_overflow(tmp_path):
    world = make_world(tmp_path / "w", samples=(9,), unlabelled=0.5)
    assert make_cache(world, tmp_path / "c", targets=TargetsConfig(k=2)).commits
