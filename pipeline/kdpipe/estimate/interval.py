"""A number that is not known exactly: a middle, and a range that its measurements give it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t, two-sided 90 %, by degrees of freedom; beyond the last it hardly changes.
_T = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83, 1.81, 1.80, 1.78, 1.77, 1.76, 1.75)
_T_MANY = 1.70


@dataclass(frozen=True)
class Estimate:
    """`low` <= `mid` <= `high`."""

    low: float
    mid: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Estimate":
        """Without a range."""
        return cls(value, value, value)

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Estimate":
        """The mean of what these were drawn from, with its 90 % range; of a single value without a range."""
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls.exactly(mean)
        t = _T[n - 2] if n - 2 < len(_T) else _T_MANY
        half = t * float(np.std(values, ddof=1)) / math.sqrt(n)
        return cls(max(0.0, mean - half), mean, mean + half)

    @classmethod
    def of_times(cls, values: Sequence[float]) -> "Estimate":
        """Mean and the 10th and 90th percentile: a machine's speed drifts, so repeats don't narrow its range."""
        mean = float(np.mean(values))
        low, high = np.quantile(values, (0.1, 0.9)).tolist()
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
