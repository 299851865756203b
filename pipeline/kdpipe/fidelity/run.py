"""What encodings lose: relative errors of a student's gradients, by loss and by encoding."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdpipe.fidelity.encodings import EncodingCase, bytes_per_view, encoding_cases
from kdpipe.fidelity.gradients import LossGradients
from kdpipe.fidelity.loss_cases import LossCase
from kdpipe.fidelity.setup import Setup, TeacherBatch
from kdpipe.fidelity.student import MODEL, NAME, Student
from kdpipe.targets import Targets

Log = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much is measured: steps of the student beforehand, batches, rows of each."""

    steps: int = 300
    batches: int = 4
    rows: int = 64


@dataclass(frozen=True)
class Encoded:
    """A student, batches that it wasn't trained on, and their targets (one a batch) by the encoding's name."""

    student: Student
    batches: list[TeacherBatch]
    cases: list[EncodingCase]
    targets: dict[str, list[Targets]]

    def gradients(self, case: LossCase, student: Student | None = None) -> LossGradients:
        """Those of a loss on the batches."""
        return LossGradients(student or self.student, self.batches, case)


def encode(setup: Setup, size: Size, log: Log = lambda _: None) -> Encoded:
    """Train the student, and encode targets of other views in every way."""
    log("training the student")
    student = Student(setup, size.steps, size.rows)
    batches = list(setup.batches(size.batches, size.rows, epoch=1_000))
    log("encoding")
    cases = encoding_cases(setup)
    return Encoded(student, batches, cases, {c.name: [c.targets(setup, b) for b in batches] for c in cases})


def measure_fidelity(
    setup: Setup, encoded: Encoded, losses: Sequence[LossCase], size: Size, log: Log = lambda _: None
) -> dict[str, Any]:
    """Relative errors of gradients, ||g - g_exact|| / ||g_exact|| over the student's parameters.

    Args:
        setup: samples, views and teacher.
        encoded: see `encode`.
        losses: to measure.
        size: as `encoded` was made with.
        log: receives what is being measured.

    Returns:
        JSON-able. `errors`: by loss, by encoding: `student`, a spread over the batches, `adapters`, and `refused`
            where the loss doesn't take this encoding;
        `bytes`: of a view, by encoding; `noise`: by loss, how far a batch's gradient is from the mean of all;
        `absent`: losses that the teacher lacks a part for, and why; and properties of teacher and student.
    """
    began = time.monotonic()
    errors, noise, absent = {}, {}, {}
    for loss in losses:
        why = loss.missing(setup.lacks)
        if why is not None:
            absent[loss.name] = why
            continue
        log(loss.name)
        gradients = encoded.gradients(loss)
        errors[loss.name] = {
            c.name: gradients.errors(c, encoded.targets[c.name]) for c in encoded.cases if _concerns(c, loss)
        }
        noise[loss.name] = gradients.noise
    return {
        "errors": errors,
        "bytes": bytes_per_view(encoded.cases, setup, encoded.batches),
        "noise": noise,
        "absent": absent,
        "teacher": _teacher(setup, encoded.batches, [c.encoding.k for c in encoded.cases if c.top]),
        "student": {"model": NAME, "kwargs": MODEL, **encoded.student.accuracy(encoded.batches)},
        "views": setup.views.model_dump(mode="json", exclude_defaults=True),
        **asdict(size),
        "seconds": round(time.monotonic() - began),
    }


def _concerns(case: EncodingCase, loss: LossCase) -> bool:
    needs = loss.requirements
    return needs.logits or needs.dense if case.kind == "logits" else bool(getattr(needs, case.kind))


def _teacher(setup: Setup, batches: Sequence[TeacherBatch], ks: Sequence[int]) -> dict[str, Any]:
    """`retained`: mean probability of the top k; `explained`: the map's variance that so many components hold."""
    built, info = setup.teacher.built, setup.info
    probabilities = torch.cat([b.output.logits for b in batches]).double().softmax(dim=1)
    explained: dict[str, float] = {}
    tokens = [b.output.map.movedim(1, -1).flatten(0, 2) for b in batches if b.output.map is not None]
    for rank in setup.ranks:
        basis, every = setup.basis_of(rank), torch.cat(tokens)
        assert basis is not None
        lost = (every - basis.restore(basis.project(every))).square().sum()
        explained[str(rank)] = 1 - float(lost / (every - basis.mean).square().sum())
    return {
        "model": built.name,
        "kwargs": built.kwargs,
        "classes": info.num_classes,
        "pooled": info.pooled,
        "map": info.map,
        "size": built.input_size,
        "retained": {str(k): float(probabilities.topk(k, dim=1).values.sum(dim=1).mean()) for k in ks},
        "explained": explained,
    }
