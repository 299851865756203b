"""Whether a map's calibration fits the live teacher's outputs.

Cached projections are compared with live ones on the cached basis, so that comparison can't detect a wrong basis. What
reading gives back of a map is off by what rounding takes, which `agreement` bounds, and by what the basis leaves
out. That must be little where it was little when the basis was fitted. Sums in the tasks' records are no measure of
it: what was cached on a wrong basis was measured on it too, and views that are cut take an even share of the sums.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from kdpipe.caching.determinism import FLOOR
from kdpipe.targets import Calibration, Feature
from kdpipe.verification.compare import ORTHONORMAL, SLACK, orthonormal_error

# A calibration may be fitted to views of a few classes, or of other shards, and what is looked at may be a batch of
# one class: so the batch that suits it best is checked, of no fewer than these, and only one of no fewer views.
_BATCHES, _FITTED = 4, 16
# What is held may be so much less than what was expected, squared distances so many times more or less.
_LESS, _TIMES = 2.0, 100.0


@dataclass
class CalibrationTruth:
    """A calibration compared with live tokens; `add` batches, then `json`.

    Attributes:
        feature: the map.
        calibration: as stored.
        fitted: views that it was fitted to.
        held: of each batch, the share of the squared distances from the stored mean that the components hold.
        spread: of each batch, the mean squared distance relative to that given by the stored std.
    """

    feature: Feature
    calibration: Calibration
    fitted: int
    held: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)

    @property
    def misfit(self) -> str | None:
        """What of its tensors is not of the map's shape; such a calibration can't be used at all."""
        width, rank = self.feature.shape[-1], self.feature.rank
        wanted = {"mean": (width,), "std": (width,)} | ({"components": (rank, width)} if rank else {})
        tensors = self.calibration.tensors()
        for name, shape in wanted.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                return f"its {name} is of shape {found}, the map needs {shape}"
        return None

    def add(self, first: torch.Tensor, again: torch.Tensor) -> None:
        """Tokens of two live runs, float (N, ..., D)."""
        x, mean = first.float(), self.calibration.mean.to(first.device)
        away = _square(x - mean)
        noise = FLOOR * float(x.abs().max()) + SLACK * float((x - again.float()).abs().max())
        if away <= x.numel() * noise**2:
            return  # a map that never changes has no directions
        stored = float(self.calibration.std.double().square().sum()) * (x.numel() // x.shape[-1])
        self.spread.append(away / stored if stored else math.inf)
        if self.feature.rank is not None:
            self.held.append(_square(self.calibration.project(x)) / away)

    @property
    def expected(self) -> float:
        """The least share that must be held.

        Fitted to n views, the largest variances come out up to (1 + sqrt(D / n))^2 times too large, which is when all
        are alike (Marchenko and Pastur); tokens of one view are alike, so views are counted and not tokens.
        """
        inflated = (1 + math.sqrt(self.feature.shape[-1] / max(1, self.fitted))) ** 2
        return self.calibration.explained / (_LESS * inflated)

    def what(self) -> str | None:
        """What is wrong with it; None for nothing."""
        if self.misfit is not None:
            return self.misfit
        if self.feature.rank is not None:
            off = orthonormal_error(self.calibration)
            if not off <= ORTHONORMAL:
                return f"its components are not orthonormal: off by {off:.3g}, {ORTHONORMAL:.3g} are allowed"
        if not self.checked:
            return None
        if not any(1 / _TIMES <= ratio <= _TIMES for ratio in self.spread):
            ratio = min(self.spread, key=lambda r: abs(math.log(r)) if 0 < r < math.inf else math.inf)
            return f"live tokens lie about its mean {ratio:.3g} times as far (squared) as its std gives"
        if self.held and not max(self.held) >= self.expected:
            held, explained = max(self.held), self.calibration.explained
            return f"it holds {held:.3g} of the live variance at most, where {explained:.3g} is recorded"
        return None

    @property
    def checked(self) -> bool:
        """Whether there was enough to check more than its form."""
        return len(self.spread) >= _BATCHES and self.fitted >= _FITTED

    def json(self) -> dict[str, Any]:
        """`explained` as recorded and `held` on average, None without a basis; if it was `checked`; `ok`, `what`."""
        what, count = self.what(), len(self.held)
        return {
            "explained": None if self.feature.rank is None else self.calibration.explained,
            "held": sum(self.held) / count if count else None,
            "checked": self.checked,
            "ok": what is None,
            **({} if what is None else {"what": what}),
        }


def _square(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
