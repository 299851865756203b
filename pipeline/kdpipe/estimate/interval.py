"""A measured number with its spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """`low` <= `mid` <= `high`: the 10th percentile, the mean and the 90th percentile of what was measured."""

    low: float
    mid: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Estimate":
        """Without a spread."""
        return cls(value, value, value)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of measurements, at least one."""
        low, high = np.quantile(values, (0.1, 0.9)).tolist()
        mean = float(np.mean(values))
        return cls(min(low, mean), mean, max(high, mean))

    def __add__(self, other: "Estimate | float") -> "Estimate":
        o = other if isinstance(other, Estimate) else Estimate.exactly(other)
        return Estimate(self.low + o.low, self.mid + o.mid, self.high + o.high)

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.low * factor, self.mid * factor, self.high * factor)

    def over(self, other: "Estimate") -> "Estimate":
        """The quotient, from the least it may be to the most; infinite where the other may be 0."""
        pairs = ((self.low, other.high), (self.mid, other.mid), (self.high, other.low))
        return Estimate(*(a / b if b > 0 else math.inf for a, b in pairs))

    def json(self) -> dict[str, float | None]:
        """low, mid and high; None for infinity."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}
