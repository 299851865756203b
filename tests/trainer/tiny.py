"""A job small enough to train in a second: 44 images of 16 pixels, a model of a few hundred weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdpipe.caching import CachingConfig, cache_views
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig
from kdpipe.shards import Index, build_index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import TrainConfig, TrainingJob
from kdpipe.views import ViewsConfig
from tests.shards.making import write_shards

SIZE, CLASSES = 16, 4
# The papers' recipe: what trains and resumes with all of it does so with less.
VIEWS = ViewsConfig(
    seed=5,
    scale=(0.5, 1.0),
    crop_pct=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    re_prob=0.25,
    re_mode="pixel",
    mixup=0.8,
    cutmix=1.0,
)
MODEL = "tests.trainer.tiny:model"
TRAIN = {"epochs": 3, "batch_size": 16, "lr": 0.01, "warmup_epochs": 0.5, "seed": 7, "device": "cpu"}


def model(num_classes: int, width: int = 8, norm: bool = True, dropout: float = 0.1) -> nn.Module:
    """A convolution, maybe batch norm, dropout, a head: everything a resume could get wrong."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(4 * width, num_classes),
    )


def teacher_model(num_classes: int) -> nn.Module:
    """A fixed teacher that knows nothing, but says it clearly."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        made = model(num_classes, width=16, norm=False)
        nn.init.normal_(made[-1].weight, std=2.0)
    return made


def make_index(folder: Path, name: str = "train", seed: int = 0, unlabelled: float = 0.0, samples: int = 22) -> Index:
    write_shards(
        folder / name, 2, samples, size=20, classes=CLASSES, seed=seed, unlabelled=unlabelled, kind="png", name=name
    )
    return build_index(str(folder / name), folder / f"{name}.index", block_size=8)


def make_teacher() -> Teacher:
    config = TeacherConfig(
        model="tests.trainer.tiny:teacher_model",
        num_classes=CLASSES,
        input_size=SIZE,
        device="cpu",
        batch_size=8,
        channels_last=False,
    )
    return Teacher(config)


def make_cache(folder: Path, index: Index, views: Any = (0, 1), **targets: Any) -> str:
    url = str(folder / "cache.zarr")
    config = TargetsConfig(**{"kind": "dense", "dtype": "float32", **targets})
    cache_views(url, index, VIEWS, make_teacher(), config, views, caching=CachingConfig(render_threads=1))
    return url


def configured(name: str = "kd", **numbers: Any) -> LossConfig:
    """A config with hyperparameters of the one loss that it names."""
    own = {"student_layers", "teachers", "teacher_weights"} & numbers.keys()
    common = {key: numbers.pop(key) for key in own}
    return LossConfig(name=name, **common, **({name.replace("-", "_"): numbers} if numbers else {}))


def make_job(
    index: Index,
    validation: Index | None = None,
    cache: str | None = None,
    loss: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    loader: dict[str, Any] | None = None,
    **train: Any,
) -> TrainingJob:
    default = {"model": MODEL, "input_size": SIZE, "num_classes": CLASSES}
    return TrainingJob(
        index=index,
        validation=validation,
        caches=(cache,) if cache else (),
        views=VIEWS,
        student=ModelConfig(**{**default, **(student or {})}),
        loss=configured(**(loss or {"name": "kd" if cache else "none"})),
        train=TrainConfig(**{**TRAIN, **train}),
        loader=LoaderConfig(**{"streams": 3, "window": 2, **(loader or {})}),
    )


def lines(out: Path) -> list[dict[str, Any]]:
    """The metrics, without what depends on the clock."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "timing"} for line in found]


def distributed_job(data: str) -> TrainingJob:
    """The same in every process: no batch norm, whose statistics are each process's own, and no dropout."""
    index, validation = (Index.open(Path(data) / f"{name}.index") for name in ("train", "val"))
    student = {"model_kwargs": {"norm": False, "dropout": 0.0}}
    cache = str(Path(data) / "cache.zarr")
    return make_job(index, validation, cache, student=student, checkpoint_steps=2, lr=0.02)
