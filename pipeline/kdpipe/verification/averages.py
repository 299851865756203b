"""Cached outputs of a teacher that is declared nondeterministic: on average as near to a live run as another live run.

Given one live run, what is cached and a second live run, encoded like it, are two draws of the same distribution, so
which of them is nearer to the first is even. Of the batches' mean distances that is tested; single values can't be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kdpipe.caching.determinism import FLOOR

# Batches to look at; fewer than the least can't show enough: the sum below is at most the root of their number.
BATCHES, LEAST = 32, 12
# Of symmetric independent differences the sum exceeds so many times the root of the sum of squares with a probability
# of at most exp(-9 / 2), and for those near a normal distribution of 0.1 %.
_LARGEST = 3.0


@dataclass
class Averages:
    """Mean distances from the first live run, of each batch: of the cached rows, and of a second live run."""

    cached: list[float] = field(default_factory=list)
    live: list[float] = field(default_factory=list)

    @property
    def means(self) -> tuple[float, float]:
        """Over all batches: of the cached rows, and of the second live run."""
        count = max(1, len(self.cached))
        return sum(self.cached) / count, sum(self.live) / count

    def what(self) -> str | None:
        """What is wrong; None for nothing."""
        count = len(self.cached)
        if count < LEAST:
            return f"{count} batches are too few for averages of a nondeterministic teacher, {LEAST} are needed"
        farther = excess(self.cached, self.live)
        if farther <= _LARGEST:
            return None
        ours, theirs = self.means
        return (
            f"on average {ours:.3g} from a live run, where another live run is {theirs:.3g}: "
            f"{farther:.2g} standard errors beyond chance, {_LARGEST:.2g} are allowed"
        )


def excess(cached: Sequence[float], live: Sequence[float]) -> float:
    """By how many standard errors the first are larger than the second, beyond rounding; infinite if not finite."""
    differences = [ours - theirs - FLOOR for ours, theirs in zip(cached, live, strict=True)]
    squares = sum(d * d for d in differences)
    if not math.isfinite(squares):
        return math.inf
    return sum(differences) / math.sqrt(squares) if squares else 0.0
