"""Losses on their way to the log: fetched from the device now and then, checked, averaged over the epoch."""

import math

import torch

from kdpipe.errors import TrainingError
from kdpipe.trainer.distributed import Distributed

# Fetching a loss makes the CPU wait for the GPU; on a CPU there is nothing to wait for.
_FETCH_EVERY = 50


class LossLog:
    """Collects the parts of each step's loss.

    Attributes:
        sums: by part, over the steps of the epoch that were fetched.
        steps: how many those are.
        latest: mean over the processes, of the last step fetched.
    """

    def __init__(self, ranks: Distributed) -> None:
        self._ranks = ranks
        self._every = _FETCH_EVERY if ranks.device.type == "cuda" else 1
        self._waiting: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.latest: dict[str, float] = {}

    def add(self, epoch: int, step: int, parts: dict[str, torch.Tensor]) -> None:
        """Take a step's losses."""
        self._waiting.append((step, parts))
        if len(self._waiting) >= self._every:
            self.fetch(epoch)

    def fetch(self, epoch: int) -> None:
        """Have all losses so far in `sums`.

        Raises:
            TrainingError: one is NaN or infinite; names epoch and step.
        """
        if not self._waiting:
            return
        names = list(self._waiting[0][1])
        table = torch.stack([torch.stack([p[name].double() for name in names]) for _, p in self._waiting])
        values = self._ranks.mean(table).tolist()
        for (step, _), row in zip(self._waiting, values, strict=True):
            if not all(map(math.isfinite, row)):
                raise TrainingError(
                    "the loss is not finite",
                    where=f"epoch {epoch + 1} step {step}",
                    found=", ".join(f"{n} {v}" for n, v in zip(names, row, strict=True)),
                    do="Lower --lr, set train.clip_grad=1, or use --amp-dtype bfloat16 or float32; "
                    "the last checkpoint is from before",
                )
            # One step after the other, so that the sum doesn't depend on how many were fetched together.
            for name, value in zip(names, row, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.latest = dict(zip(names, row, strict=True))
            self.steps += 1
        self._waiting = []

    def means(self) -> dict[str, float]:
        """Over the epoch's steps, the whole loss first; starts the next epoch."""
        # A checkpoint doesn't keep the order in which the parts came.
        names = sorted(self.sums, key=lambda name: (name != "loss", name))
        means = {name: self.sums[name] / self.steps for name in names}
        self.sums, self.steps = {}, 0
        return means

    def state(self) -> dict[str, float | int | dict[str, float]]:
        """For a checkpoint; `fetch` first."""
        return {"sums": dict(self.sums), "steps": self.steps}

    def restore(self, sums: dict[str, float], steps: int) -> None:
        """From `state`."""
        self.sums, self.steps = dict(sums), steps
