"""Errors of one loss: its gradients from encoded targets against those from exact ones."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from kdpipe.fidelity.encodings import EncodingCase, with_all_classes
from kdpipe.fidelity.loss_cases import LossCase, bucket_config
from kdpipe.fidelity.setup import TeacherBatch
from kdpipe.fidelity.student import GradientProbe, Student
from kdpipe.losses import LossConfig
from kdpipe.targets import Targets

Gradients = list[dict[str, torch.Tensor]]
Spread = dict[str, float]


class LossGradients:
    """A loss's gradients on some batches, and their relative errors from encoded targets.

    Args:
        student: whose gradients they are.
        batches: of views that it wasn't trained on.
        case: the loss.
    """

    def __init__(self, student: Student, batches: Sequence[TeacherBatch], case: LossCase) -> None:
        self._student, self._batches, self._case = student, batches, case
        self._probes: dict[int, GradientProbe] = {}
        self._exact: dict[int, Gradients] = {}

    def errors(self, encoding: EncodingCase, targets: Sequence[Targets]) -> dict[str, Any]:
        """Those of targets, one a batch, that were encoded and decoded: see `relative_errors`.

        `refused` is True where the encoding has a part of the classes and the loss requires all.
        """
        refused = encoding.top and self._case.requirements.dense
        if refused:
            targets = [with_all_classes(t, b.batch.labels) for t, b in zip(targets, self._batches, strict=True)]
        # The definition of a bucket has a k.
        k = encoding.encoding.k if encoding.top and self._case.name == "bucket-kd" else 0
        if k not in self._probes:
            self._probes[k] = self._probe(bucket_config(k) if k else self._case.config)
        return {**relative_errors(self._gradients(k, targets), self.exact(k)), **({"refused": True} if refused else {})}

    def exact(self, k: int = 0) -> Gradients:
        """Of exact targets; `k` is a bucket's."""
        if k not in self._probes:
            self._probes[k] = self._probe(self._case.config)
        if k not in self._exact:
            self._exact[k] = self._gradients(k, [b.exact for b in self._batches])
        return self._exact[k]

    def errors_as(self, config: LossConfig, targets: Sequence[Targets]) -> Spread:
        """The student's error if the gradients of another loss stand for this one's exact gradients."""
        probe = self._probe(config)
        found = [probe.gradient(b, t) for b, t in zip(self._batches, targets, strict=True)]
        return relative_errors(found, self.exact())["student"]

    @property
    def noise(self) -> Spread:
        """Distance of each batch's gradient from the mean of all, relative to that mean."""
        rows = torch.stack([g["student"] for g in self.exact()])
        mean = rows.mean(dim=0)
        return _spread([float((row - mean).norm() / mean.norm()) for row in rows])

    def _gradients(self, k: int, targets: Sequence[Targets]) -> Gradients:
        return [self._probes[k].gradient(b, t) for b, t in zip(self._batches, targets, strict=True)]

    def _probe(self, config: LossConfig) -> GradientProbe:
        return GradientProbe(self._student.distillation(config), self._case)


def relative_errors(found: Gradients, exact: Gradients) -> dict[str, Spread]:
    """||g - g_exact|| / ||g_exact||: median, min and max over the batches, of `student` and `adapters`."""
    return {
        part: _spread([float((g[part] - e[part]).norm() / e[part].norm()) for g, e in zip(found, exact, strict=True)])
        for part in exact[0]
    }


def _spread(values: list[float]) -> Spread:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
