"""From configs to everything a run works with. What can't work is refused here, before a file is written."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdpipe._util.fingerprint import canonical_json
from kdpipe.errors import TrainingError
from kdpipe.loader import Loader, LoaderConfig
from kdpipe.losses import LossConfig, Requirements
from kdpipe.models import ModelConfig, ModelSpec, weights_digest
from kdpipe.shards import Index
from kdpipe.shards.classes import require_same
from kdpipe.trainer.config import TrainConfig
from kdpipe.trainer.distributed import Distributed
from kdpipe.trainer.module import DistillationModule
from kdpipe.trainer.step import Step, build_student, stable_seed
from kdpipe.trainer.teachers import Log, Teachers
from kdpipe.views import ViewsConfig
from kdpipe.views.block import labelling_index


@dataclass(frozen=True)
class TrainingJob:
    """One student to train.

    Attributes:
        index: training samples.
        validation: samples for the evaluation after an epoch, or None.
        caches: where each teacher's targets are; none for losses without a teacher.
    """

    index: Index
    views: ViewsConfig
    student: ModelConfig
    loss: LossConfig
    train: TrainConfig
    loader: LoaderConfig
    validation: Index | None = None
    caches: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """A job made concrete in one process.

    Attributes:
        identity: what a resumed run must match.
        pixels: of each cache, whether the student sees what the teacher saw, and if not, what is the same; see
            `Teachers.fit`.
    """

    job: TrainingJob
    ranks: Distributed
    built: ModelSpec
    step: Step
    loader: Loader
    validation: Loader | None
    identity: dict[str, Any]
    pixels: list[dict[str, Any]]

    def close(self) -> None:
        """Stop the loaders' workers."""
        self.loader.close()
        if self.validation is not None:
            self.validation.close()


def prepare(job: TrainingJob, ranks: Distributed, log: Log, resumed: dict[str, Any] | None = None) -> TrainingPlan:
    """Open the cache, check that all fits together, build student and loaders.

    Args:
        job: what to train.
        ranks: the processes of the run.
        log: gets remarks, one line each.
        resumed: identity of the run to resume; it keeps its views whatever was added to the cache since.

    Raises:
        TrainingError: no cache where the loss needs one, no labels, no class count, a student that can't run.
        IdentityError, CacheError, TargetsError, ViewError: the cache doesn't serve this job.
        ShardError: a label is out of range.
    """
    needs = job.loss.requirements
    # An older version's checkpoint has none; it is refused by what differs.
    before = [] if resumed is None else resumed.get("caches", [])
    classes = job.student.num_classes
    teachers = Teachers(
        job.caches, job.index, job.views, job.loss, job.loader, classes, log, before, job.student.trusted()
    )
    built = build_student(job.student, job.train, _classes(job, teachers))
    for index in (labelling_index(job.index, job.views), *([job.validation] if job.validation else [])):
        index.check_labels(built.num_classes)
    _compare_class_names(job, teachers, log)
    for idle in job.views.remarks():
        log(idle)
    pixels = teachers.fit(built, log)
    common: dict[str, Any] = {"loader": job.loader, "rank": ranks.rank, "world": ranks.world}
    batch, size = job.train.batch_size, built.input_size
    labelled_only = needs.labels and not needs.targets
    loader = Loader(
        job.index,
        job.views,
        size,
        batch,
        seed=job.train.seed,
        cache=teachers.reader,
        labelled_only=labelled_only,
        **common,
    )
    _remark_labels(job, needs, loader, log)
    remark = loader.require_epochs(job.train.epochs)
    if remark:
        log(remark)
    validation = (
        None
        if job.validation is None
        else Loader(job.validation, job.views, size, batch, evaluate=("center",), **common)
    )
    identity = _identity(job, built, teachers, loader)
    torch.manual_seed(stable_seed("adapters", job.train.seed))
    distillation = DistillationModule(built, job.loss, teachers.info())
    for line in teachers.remarks():
        log(line)
    step = Step(distillation, job.train, updates=loader.steps, targets_of=teachers.targets_of, ranks=ranks)
    step.dry_run()
    return TrainingPlan(job, ranks, distillation.built, step, loader, validation, identity, pixels)


def _classes(job: TrainingJob, teachers: Teachers) -> int | None:
    """Number of classes where neither the student's config nor its weights give it."""
    if teachers.readers:
        return teachers.readers[0].num_classes
    largest = int(np.max(labelling_index(job.index, job.views).labels))
    return job.index.num_classes or (largest + 1 if largest >= 0 else None)


def _compare_class_names(job: TrainingJob, teachers: Teachers, log: Log) -> None:
    """Raise IdentityError where the index and what is used with it name classes differently."""
    others = [(reader.cache.classes, reader.url, "the cache") for reader in teachers.readers]
    if job.validation is not None:
        others.append((job.validation.classes, str(job.validation.path), "the validation index"))
    for remark in dict.fromkeys(require_same(job.index.classes, *other) for other in others):
        if remark is not None:
            log(remark)


def _remark_labels(job: TrainingJob, needs: Requirements, loader: Loader, log: Log) -> None:
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
        log(f"mixing leaves {known} of {total - without} labels in epoch 1: of a pair both samples must have one")
    if not needs.targets:
        log(f"{without} of {total} samples have no label and are left out")
    elif without == total:
        hint = ", and loss.kd.alpha=1 would do that" if job.loss.name == "kd" else ""
        log(f"no sample has a label: the cross entropy is zero{hint}")
    else:
        log(f"{without} of {total} samples have no label: they learn from the teacher only")


def _identity(job: TrainingJob, built: ModelSpec, teachers: Teachers, loader: Loader) -> dict[str, Any]:
    """What decides the trained weights, rounding aside: no path, device, worker or number of processes."""
    loaded = built.module if job.student.weights or job.student.pretrained else None
    identity = {
        "data": job.index.fingerprint,
        "validation": job.validation and job.validation.fingerprint,
        "views": job.views.identity() | job.views.student_identity(),
        "caches": teachers.identity(),
        "student": {**built.metadata(), "weights": loaded and weights_digest(loaded)},
        "loss": job.loss.used(),
        "train": job.train.identity(),
        "loader": {
            "streams": loader.streams,
            "window": job.loader.window,
            "views_per_decode": job.loader.views_per_decode,
            "view_schedule": job.loader.view_schedule,
        },
    }
    return json.loads(canonical_json(identity))
