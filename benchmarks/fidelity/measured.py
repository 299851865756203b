"""Errors of one loss: its gradients from encoded targets against those from exact ones."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.fidelity.scene import Shown
from benchmarks.fidelity.student import Probe, Trained
from benchmarks.fidelity.uses import Use, of_bucket
from benchmarks.fidelity.ways import Way, passed_off, renormalised
from benchmarks.measure import spread
from kdpipe.targets import Targets

Gradients = list[dict[str, torch.Tensor]]


class Measured:
    """One loss's gradients on some batches, and how far those of encoded targets are off.

    Args:
        student: whose gradients they are.
        shown: the batches.
        use: the loss.
    """

    def __init__(self, student: Trained, shown: Sequence[Shown], use: Use) -> None:
        self._student, self._shown, self._use = student, shown, use
        self._probes: dict[int, Probe] = {}
        self._exacts: dict[int, Gradients] = {}

    def of(self, way: Way, kept: Sequence[Targets]) -> dict[str, Any]:
        """The errors of a way."""
        k = way.encoding.k if way.top else 0
        targets, refused = list(kept), way.top and self._use.requirements.dense
        if refused:
            targets = [passed_off(t, s.batch.labels) for t, s in zip(kept, self._shown, strict=True)]
        found: dict[str, Any] = {**self._against(k, targets), **({"refused": True} if refused else {})}
        if way.top and way.encoding.dtype == "float16" and self._use.name != "bucket-kd":
            peer = self._against(k, [renormalised(t) for t in kept])["student"]
            ours = found["student"]["median"]
            found |= {"peer": peer, "ratio": peer["median"] / ours if ours else None}
        return found

    def error(self, way: Way, kept: Sequence[Targets]) -> dict[str, float]:
        """Of the student's parameters alone, without a peer's."""
        return self._against(way.encoding.k if way.top else 0, kept)["student"]

    def exact(self, k: int = 0) -> Gradients:
        """Of exact targets; a bucket's definition has the k."""
        k = k if self._use.name == "bucket-kd" else 0
        if k not in self._exacts:
            self._exacts[k] = [self._probe(k).gradient(one, one.exact) for one in self._shown]
        return self._exacts[k]

    @property
    def noise(self) -> dict[str, float]:
        """Distance of each batch's gradient from the mean of all, relative to that mean."""
        rows = torch.stack([g["student"] for g in self.exact()])
        mean = rows.mean(dim=0)
        return spread([float((row - mean).norm() / mean.norm()) for row in rows])

    def _against(self, k: int, targets: Sequence[Targets]) -> dict[str, Any]:
        probe = self._probe(k)
        found = [probe.gradient(one, t) for one, t in zip(self._shown, targets, strict=True)]
        return off(found, self.exact(k))

    def _probe(self, k: int) -> Probe:
        k = k if self._use.name == "bucket-kd" else 0
        if k not in self._probes:
            config = of_bucket(k) if k else self._use.config
            self._probes[k] = Probe(self._student.distillation(config), self._use)
        return self._probes[k]


def off(found: Gradients, exact: Gradients) -> dict[str, dict[str, float]]:
    """Relative errors, a spread over the batches, of the student's parameters and of the adapters'."""
    return {
        part: spread([float((g[part] - e[part]).norm() / e[part].norm()) for g, e in zip(found, exact, strict=True)])
        for part in exact[0]
    }
