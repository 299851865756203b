"""The comparison: a cache with all kinds of targets, a job for each loss and seed, and their figures."""

import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison.losses import ALONE, Row, rows
from benchmarks.comparison.runs import Outcome, Run, run_all
from benchmarks.comparison.setup import Setup, top1
from kdpipe.cache import Cache, CacheReader, CacheRequest
from kdpipe.caching import cache_views
from kdpipe.loader import LoaderConfig
from kdpipe.losses import Requirements
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher
from kdpipe.trainer import Log, TrainConfig, TrainingJob

ALL_TARGETS = TargetsConfig(kind="dense", dtype="float16", pooled="float16", map="float16", tail=True)
# A ResNet, because NORM can only be merged into networks of its kind; 4 x 4 positions are left of 32 pixels.
STUDENT = "resnet10t"
STUDENT_KWARGS = {"channels": [16, 24, 32, 48], "stem_width": 8, "output_stride": 8}


@dataclass(frozen=True)
class Budget:
    """What every student gets. Each epoch shows another view, so there are as many as epochs."""

    epochs: int
    batch_size: int
    lr: float
    seeds: int
    jobs: int

    def training(self, seed: int, epochs: int) -> TrainConfig:
        """Of a run of so many epochs."""
        return TrainConfig(
            epochs=epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup_epochs=epochs / 10,
            seed=seed,
            threads=1,
            eval_every=epochs,
            checkpoint_epochs=epochs,
        )


def compare(
    setup: Setup, folder: Path, student: ModelConfig, budget: Budget, only: Collection[str], log: Log
) -> dict[str, Any]:
    """Train the student with every loss, `budget.seeds` times.

    Args:
        setup: the samples and the teacher.
        folder: for the cache and the runs; what is finished there isn't done again.
        student: without input size, mean and std, which are the teacher's.
        budget: of each run.
        only: losses; all by default.
        log: receives what happens, one line each.

    Returns:
        `data`, `teacher`, `student`, `budget`, `cache`: what was used; `rows`: of each loss its hyperparameters, top-1
        and gain by seed, seconds, steps, the last epoch's parts of the loss, bytes a view, or why it is refused.
    """
    teacher = Teacher(setup.teacher, setup.index.num_classes)
    url = str(folder / "cache.zarr")
    log(f"caching {budget.epochs} views of {len(setup.index)} samples")
    cache, report = cache_views(url, setup.index, setup.views, teacher, ALL_TARGETS, range(budget.epochs))
    feed = {name: getattr(teacher.built, name) for name in ("num_classes", "input_size", "mean", "std")}
    student = student.model_copy(update=feed)
    chosen = rows(budget.epochs, only)
    runs = [
        Run(row.label, seed, job(setup, url, student, row, budget, seed), folder / f"{_slug(row.label)}-{seed}")
        for seed in range(budget.seeds)
        for row in chosen
    ]
    outcomes = run_all(runs, budget.jobs, log)
    segment = cache.segments[0]
    assert report.encoding is not None
    assert report.encoding.map is not None
    built = build(student)
    return {
        "data": {
            "samples": len(setup.index),
            "labelled": setup.labelled,
            "validation": len(setup.validation),
        },
        "teacher": {
            "model": teacher.built.name,
            "model_kwargs": teacher.built.kwargs,
            "map": list(report.encoding.map.shape),
            "top1": top1(setup, teacher),
        },
        "student": {
            "model": built.name,
            "model_kwargs": built.kwargs,
            "parameters": sum(p.numel() for p in built.module.parameters()),
            "input_size": built.input_size,
        },
        "budget": {**vars(budget), "steps": max(o.steps for o in outcomes.values())},
        "cache": {"bytes_per_view": cache.bytes(segment) / cache.quality(segment).views},
        "rows": [_figures(row, outcomes, budget.seeds, _bytes(cache, setup, row)) for row in chosen],
    }


def job(setup: Setup, url: str, student: ModelConfig, row: Row, budget: Budget, seed: int) -> TrainingJob:
    """Of one run. Labels alone pass by more often where samples lack theirs, so that there are as many steps."""
    taught, epochs = row.loss.requirements.targets, budget.epochs
    if not taught and setup.index.unlabelled:
        steps = epochs * -(-len(setup.index) // budget.batch_size)
        epochs = max(1, round(steps / -(-setup.labelled // budget.batch_size)))
    return TrainingJob(
        index=setup.index,
        validation=setup.validation,
        caches=(url,) if taught else (),
        views=setup.views,
        student=student,
        loss=row.loss,
        train=budget.training(seed, epochs),
        loader=LoaderConfig(),
    )


def _figures(row: Row, outcomes: dict[tuple[str, int], Outcome], seeds: int, size: int) -> dict[str, Any]:
    own = [outcomes[row.label, seed] for seed in range(seeds)]
    alone = [outcomes[ALONE, seed] for seed in range(seeds)]
    refused = next((one.refused for one in own if one.refused), "")
    found: dict[str, Any] = {
        "label": row.label,
        "hyperparameters": row.hyperparameters,
        "loss": row.loss.used(),
        "bytes_per_view": size,
        "refused": refused,
    }
    if refused:
        return found
    return found | {
        "top1": [100 * one.top1 for one in own],
        "gain": [100 * (one.top1 - other.top1) for one, other in zip(own, alone, strict=True)],
        "seconds": [one.seconds for one in own],
        "steps": own[0].steps,
        "parts": {name: statistics.mean(one.parts[name] for one in own) for name in own[0].parts},
    }


def _bytes(cache: Cache, setup: Setup, row: Row) -> int:
    """What is read of a view, uncompressed."""
    needs: Requirements = row.loss.requirements
    if not needs.targets:
        return 0
    want = CacheRequest.of(needs)
    fields: Sequence[Any] = CacheReader(cache.store.url, setup.index, setup.views, request=want).fields
    return sum(field.nbytes for field in fields)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower())
