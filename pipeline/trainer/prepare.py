"""From configs to everything a run works with. What can't work is refused here, before a file is written."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.cache import CacheReader
from pipeline.cache.record import open_reader
from pipeline.caching.identity import check_readers_canaries
from pipeline.errors import IdentityError, TrainingError
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.loader import Batch, Loader, LoaderConfig
from pipeline.models import Built, ModelConfig, weights_digest
from pipeline.objectives import Needs, ObjectiveConfig, build_objective
from pipeline.shards import Index
from pipeline.targets import Targets, mix_targets
from pipeline.trainer.config import TrainConfig
from pipeline.trainer.ranks import Ranks
from pipeline.trainer.step import Step, TargetsOf, build_student
from pipeline.views import ViewsConfig
from pipeline.views.block import labelling_index

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One student to train.

    Attributes:
        index: training samples.
        validation: samples for the evaluation after an epoch, or None.
        cache: where the teacher's targets are; None for objectives without a teacher.
    """

    index: Index
    views: ViewsConfig
    student: ModelConfig
    objective: ObjectiveConfig
    train: TrainConfig
    loader: LoaderConfig
    validation: Index | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Plan:
    """A job made concrete in one process.

    Attributes:
        identity: what a resumed run must agree with.
        pixels: whether the student sees what the teacher saw, and if not, what is the same; None without a cache.
            `exact` is None where `canaries`, how many were compared, is "unchecked".
    """

    job: Job
    ranks: Ranks
    built: Built
    step: Step
    loader: Loader
    validation: Loader | None
    identity: dict[str, Any]
    pixels: dict[str, Any] | None

    def close(self) -> None:
        """Stop the loaders' workers."""
        self.loader.close()
        if self.validation is not None:
            self.validation.close()


def prepare(job: Job, ranks: Ranks, say: Say, begun: dict[str, Any] | None = None) -> Plan:
    """Open the cache, check that all fits together, build student and loaders.

    Args:
        job: what to train.
        ranks: the processes of the run.
        say: told remarks, one line each.
        begun: identity of the run to go on with; it keeps its views where the cache has got more since.

    Raises:
        TrainingError: no cache where the objective needs one, no labels, no class count, a student that can't run.
        IdentityError, CacheError, TargetsError, ViewError: the cache doesn't serve this job.
        ShardError: a label is out of range.
    """
    objective = build_objective(job.objective)
    reader, canaries = _open_cache(job, objective.needs, say)
    if reader is not None and begun is not None:
        _keep_views(reader, begun["cache"])
    built = build_student(job.student, job.train, _classes(job, reader))
    for index in (labelling_index(job.index, job.views), *([job.validation] if job.validation else [])):
        index.check_labels(built.num_classes)
    for idle in job.views.remarks():
        say(idle)
    pixels = None if reader is None else _check_fit(job.views, reader, built, canaries, say)
    common: dict[str, Any] = {"loader": job.loader, "rank": ranks.rank, "world": ranks.world}
    batch, size = job.train.batch_size, built.input_size
    labelled_only = objective.needs.labels and not objective.needs.targets
    loader = Loader(
        job.index,
        job.views,
        size,
        batch,
        seed=job.train.seed,
        cache=reader,
        labelled_only=labelled_only,
        **common,
    )
    _remark_labels(job, objective.needs, loader, say)
    remark = loader.require_epochs(job.train.epochs)
    if remark:
        say(remark)
    validation = (
        None
        if job.validation is None
        else Loader(job.validation, job.views, size, batch, evaluate=("center",), **common)
    )
    identity = _identity(job, built, reader, loader)
    step = Step(built, objective, job.train, updates=loader.steps, targets_of=targets_of(reader), ranks=ranks)
    step.rehearse()
    return Plan(job, ranks, built, step, loader, validation, identity, pixels)


def targets_of(reader: CacheReader | None) -> TargetsOf | None:
    """How a step gets targets from a cache: decoded on the device where the batch is."""
    if reader is None:
        return None
    encoding = reader.encoding

    def decode(batch: Batch) -> Targets:
        own = encoding.decode(batch.targets)
        if not batch.partner_targets or batch.lam is None:
            return own
        return mix_targets(own, encoding.decode(batch.partner_targets), batch.lam, batch.labels)

    return decode


def _open_cache(job: Job, needs: Needs, say: Say) -> tuple[CacheReader | None, dict[str, Any]]:
    """The cache's reader, and how its canaries look here."""
    if not needs.targets:
        if job.cache is not None:
            say(f"objective {job.objective.name} takes nothing from a teacher: the cache is not read")
        return None, {}
    if job.cache is None:
        raise TrainingError(
            f"objective {job.objective.name} needs a teacher's targets",
            do="Pass --cache (kdpipe cache-teacher makes one), or --objective none",
        )
    reader = open_reader(job.cache, job.index, job.views, dense=needs.dense, num_classes=job.student.num_classes)
    canaries = check_readers_canaries(
        reader.cache,
        job.index,
        job.views,
        job.loader.pixels,
        asked="pixels" in job.loader.model_fields_set,
        say=say,
    )
    return reader, canaries


def _keep_views(reader: CacheReader, begun: dict[str, Any] | None) -> None:
    """Use the views that a run began with, if all of them are there; else its identity will differ."""
    segments = reader.selection.segments
    if begun is not None and begun["encoding"] == reader.encoding.json() and set(begun["views"]) <= segments.keys():
        kept = {view: segment for view, segment in segments.items() if view in begun["views"]}
        reader.selection = replace(reader.selection, segments=kept)


def _classes(job: Job, reader: CacheReader | None) -> int | None:
    """Number of classes where neither the student's config nor its weights say it."""
    if reader is not None:
        return reader.encoding.num_classes
    largest = int(np.max(labelling_index(job.index, job.views).labels))
    return job.index.num_classes or (largest + 1 if largest >= 0 else None)


def _check_fit(
    views: ViewsConfig, reader: CacheReader, built: Built, canaries: dict[str, Any], say: Say
) -> dict[str, Any]:
    cached, size = reader.encoding.num_classes, reader.cache.size
    if built.num_classes != cached:
        raise IdentityError(
            "student and cached teacher have different numbers of classes",
            where=reader.url,
            found=built.num_classes,
            allowed=cached,
            do="Set student.num_classes to the teacher's",
        )
    compared = canaries["views"]
    report: dict[str, Any] = {
        "student": built.input_size,
        "teacher": size,
        "exact": not canaries["levels"] if compared else None,
        "canaries": compared or "unchecked",
    }
    if views.mix == "targets" and views.mixes:
        say("mix targets: the student sees mixed views whose parts the teacher saw one by one")
        report["exact"] = False
    if built.input_size != size:
        shared, own = views.across_sizes()
        say(
            f"student sees {built.input_size} pixels a side, the teacher saw {size}: views share {', '.join(shared)}; "
            f"each has its own {', '.join(own)}"
        )
        report |= {"exact": False, "shared": shared, "own": own}
    return report


def _remark_labels(job: Job, needs: Needs, loader: Loader, say: Say) -> None:
    total, without = len(job.index), job.index.unlabelled
    if not needs.labels or not without:
        return
    if job.views.mixes:
        known = loader.labelled(0)
        if not known and not needs.targets:
            raise TrainingError(
                "no view would have a label: of a mixed pair both must be known",
                where=job.index.path,
                found=f"{without} of {total} samples unlabelled",
                do="Train without views.mixup and views.cutmix, or on labelled samples",
            )
        say(f"mixing leaves {known} of {total - without} labels in epoch 1: of a pair both samples must have one")
    if not needs.targets:
        say(f"{without} of {total} samples have no label and are left out")
    elif without == total:
        say("no sample has a label: the cross entropy is zero, and objective.alpha=1 would say so")
    else:
        say(f"{without} of {total} samples have no label: they learn from the teacher only")


def _identity(job: Job, built: Built, reader: CacheReader | None, loader: Loader) -> dict[str, Any]:
    """What decides the trained weights, rounding aside: no path, device, worker or number of processes."""
    begun = built.module if job.student.weights or job.student.pretrained else None
    cache = reader and {
        "identity": fingerprint(reader.cache.identity),
        "encoding": reader.encoding.json(),
        "views": [v for v in reader.views if isinstance(v, int)],
    }
    identity = {
        "data": job.index.fingerprint,
        "validation": job.validation and job.validation.fingerprint,
        "views": job.views.identity() | job.views.student_identity(),
        "cache": cache,
        "student": {**built.metadata(), "weights": begun and weights_digest(begun)},
        "objective": job.objective.model_dump(mode="json"),
        "train": job.train.identity(),
        "loader": {
            "lanes": loader.lanes,
            "window": job.loader.window,
            "views_per_decode": job.loader.views_per_decode,
            "view_schedule": job.loader.view_schedule,
        },
    }
    return json.loads(canonical_json(identity))
