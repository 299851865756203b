"""The figures: for each way to keep targets and each loss, how far the student's gradient is off."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.fidelity import live
from benchmarks.fidelity.measured import Measured, off
from benchmarks.fidelity.scene import Scene, Shown, of_rank
from benchmarks.fidelity.student import MODEL, NAME, Probe, Trained
from benchmarks.fidelity.uses import Use, of_bucket, plain_kd, uses
from benchmarks.fidelity.ways import KS, Way, bytes_of, retained, ways
from kdpipe.targets import Targets
from kdpipe.trainer import Log


@dataclass(frozen=True)
class Size:
    """How much is looked at: steps of the student before, batches, rows of each, steps of parity."""

    steps: int = 300
    batches: int = 4
    rows: int = 64
    parity_steps: int = live.STEPS


def fidelity(scene: Scene, folder: Path, size: Size | None = None, log: Log = lambda _: None) -> dict[str, Any]:
    """Relative errors of gradients, ||g - g_exact|| / ||g_exact|| over the student's parameters.

    Args:
        scene: samples, views and teacher.
        folder: for the exact cache that parity is measured with.
        size: how much to look at.
        log: told what is being measured.

    Returns:
        `errors`: by loss, by way: `student`, a spread over the batches, `adapters`, and of top k `refused`
            where the loss does not take it; with a `peer` of the same k made to sum to 1, and `ratio`,
            the peer's error over ours;
        `bucket`: of KD, by way: the error of one bucket for all other classes;
        `early`: of KD, by way: the error in the gradient of a student after a tenth of the steps;
        `bytes`: by way; `noise`: by loss, how far a batch's gradient is from the mean of all;
        `parity`: by loss; and what teacher, student, views and basis are like.
    """
    size, began = size or Size(), time.monotonic()
    log("training the student")
    student = Trained(scene, size.steps, size.rows)
    # Views that no step has seen.
    shown = list(scene.batches(size.batches, size.rows, epoch=1_000))
    found = ways(scene)
    log("encoding")
    kept = {way.name: [way.targets(scene, one) for one in shown] for way in found}
    sizes = bytes_of(found, scene, shown)
    errors, noise, bucket, absent = {}, {}, {}, {}
    for use in uses():
        why = use.lacks(scene.lacks)
        if why is not None:
            absent[use.name] = why
            continue
        log(use.name)
        measured = Measured(student, shown, use)
        errors[use.name] = {way.name: measured.of(way, kept[way.name]) for way in found if _concerns(way, use)}
        noise[use.name] = measured.noise
        if use.name == "kd":
            tops = [way for way in found if way.top]
            bucket = {way.name: _bucket(student, shown, use, measured, way, kept[way.name]) for way in tops}
    log("an earlier student")
    early = _early(scene, size, shown, [way for way in found if way.top and way.encoding.dtype == "float16"], kept)
    log("parity")
    there = [use for use in uses() if use.name in errors]
    parity = live.differences(scene, student, there, folder, size.parity_steps)
    return {
        "errors": errors,
        "bucket": bucket,
        "early": early,
        "bytes": sizes,
        "noise": noise,
        "absent": absent,
        "parity": parity,
        "max_parity": max(parity.values()),
        "teacher": _teacher(scene, shown),
        "student": {"model": NAME, "kwargs": MODEL, **student.agreement(shown)},
        "views": scene.views.model_dump(mode="json", exclude_defaults=True),
        **asdict(size),
        "seconds": round(time.monotonic() - began),
    }


def _bucket(
    student: Trained, shown: Sequence[Shown], kd: Use, measured: Measured, way: Way, kept: Sequence[Targets]
) -> dict[str, float]:
    """Of KD, if all classes beyond the k are one."""
    probe = Probe(student.distillation(of_bucket(way.encoding.k)), kd)
    return off([probe.gradient(one, t) for one, t in zip(shown, kept, strict=True)], measured.exact())["student"]


def _early(
    scene: Scene, size: Size, shown: Sequence[Shown], found: Sequence[Way], kept: dict[str, list[Targets]]
) -> dict[str, Any]:
    steps = max(1, size.steps // 10)
    measured = Measured(Trained(scene, steps, size.rows), shown, plain_kd())
    return {"steps": steps, "kd": {way.name: measured.error(way, kept[way.name]) for way in found}}


def _concerns(way: Way, use: Use) -> bool:
    needs = use.requirements
    return needs.logits or needs.dense if way.kind == "logits" else bool(getattr(needs, way.kind))


def _teacher(scene: Scene, shown: Sequence[Shown]) -> dict[str, Any]:
    built, info = scene.teacher.built, scene.info
    explained = {}
    if scene.basis is not None:
        variances = _variances(scene, shown)
        explained = {str(rank): variances(rank) for rank in scene.ranks}
    return {
        "model": built.name,
        "kwargs": built.kwargs,
        "classes": info.num_classes,
        "pooled": info.pooled,
        "map": info.map,
        "size": built.input_size,
        "retained": {str(k): retained(shown, k) for k in KS if k < info.num_classes},
        "explained": explained,
    }


def _variances(scene: Scene, shown: Sequence[Shown]) -> Callable[[int], float]:
    """Share of the map's variance about the basis's mean that so many components hold, on these views."""
    assert scene.basis is not None
    tokens = torch.cat([one.output.map.movedim(1, -1).flatten(0, 2) for one in shown if one.output.map is not None])

    def of(rank: int) -> float:
        assert scene.basis is not None
        basis = of_rank(scene.basis, rank)
        lost = (tokens - basis.restore(basis.project(tokens))).square().sum()
        return 1 - float(lost / (tokens - basis.mean).square().sum())

    return of
