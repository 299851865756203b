"""A student's step from the cache against the same step without distillation."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import core_seconds, spread
from kdpipe.cache import CacheReader
from kdpipe.caching import cache_views
from kdpipe.loader import Batch, Loader
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig
from kdpipe.shards import Index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import DistillationModule, Step, TrainConfig, build_student
from kdpipe.views import ViewsConfig

CLASSES, VIEWS = 1000, ViewsConfig()


def step(
    index: Index, folder: Path, student: str = "resnet18", size: int = 64, batch: int = 64, steps: int = 30
) -> dict[str, Any]:
    """Core-milliseconds of a step, loading included: KD from a top-16 cache against cross entropy alone.

    Both see the same views of the same samples in the same order, step by step in turn.
    """
    teacher = Teacher(TeacherConfig(model="benchmarks.data:cheap_teacher", num_classes=CLASSES, input_size=size))
    url = str(folder / "step.zarr")
    cache_views(url, index, VIEWS, teacher, TargetsConfig(), [0, 1])
    reader = CacheReader(url, index, VIEWS)
    arms = {
        "cache": _arm(index, "kd", student, size, batch, reader),
        "alone": _arm(index, "none", student, size, batch, None),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(steps + 3):
        for name, (batches, one) in arms.items():
            seconds = core_seconds(partial(_next_step, one, batches, number))
            if number >= 3:  # the first steps allocate
                times[name].append(1e3 * seconds)
    pairs = [a / b for a, b in zip(times["cache"], times["alone"], strict=True)]
    return {
        "ratio": spread(pairs)["median"],
        "ratio_spread": spread(pairs),
        "core_ms_with_cache": spread(times["cache"]),
        "reference": "the same step with cross entropy alone",
        "core_ms_alone": spread(times["alone"]),
        "student": student,
        "size": size,
        "batch": batch,
        "classes": CLASSES,
        "steps": steps,
    }


def _next_step(one: Step, batches: Iterator[Batch], number: int) -> None:
    one(next(batches), number)


def _arm(
    index: Index, loss: str, student: str, size: int, batch: int, cache: CacheReader | None
) -> tuple[Iterator[Batch], Step]:
    loader = Loader(index, VIEWS, size, batch, cache=cache)
    config = TrainConfig(epochs=100, batch_size=batch, opt="sgd", lr=0.01)
    built = build_student(ModelConfig(model=student, num_classes=CLASSES, input_size=size), config)
    one = Step(
        DistillationModule(built, LossConfig(name=loss)),
        config,
        updates=loader.steps,
        targets_of=None if cache is None else lambda b: cache.decode(b.targets),
    )
    return (b for epoch in range(100) for b in loader.epoch(epoch)), one
