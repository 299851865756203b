"""Canaries: a few views kept as pixels in every cache, rendered again before anyone trusts it.

A policy and a seed define what should be rendered; they can't show that another decoder, another vector unit or
a patched library renders it differently. Pixels can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdpipe.errors import ViewError
from kdpipe.views.draws import View

COUNT = 64
CanaryTolerance = Literal[0, 1]


@dataclass(frozen=True)
class Canary:
    """A view's name and how it looked: `pixels` is uint8 (S, S, 3)."""

    shard: str
    key: str
    view: View
    pixels: np.ndarray

    def label(self) -> dict[str, Any]:
        """What is stored beside the pixels."""
        return {"shard": self.shard, "key": self.key, "view": self.view}


def spread(total: int, count: int) -> list[int]:
    """Up to `count` of range(total): the first, the last and those evenly between."""
    count = min(total, count)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def compare(canaries: Sequence[Canary], rendered: Sequence[np.ndarray], tolerance: CanaryTolerance) -> dict[str, Any]:
    """How far today's renderings (uint8, one a canary) are from the kept ones.

    Returns:
        `views`, `changed` (views with any difference), `pixels` (share of values that differ), `levels` (the
        largest difference).

    Raises:
        ViewError: when the difference is more than `tolerance` permits; it names the worst view and place.
    """
    worst, levels, changed, moved, values = None, 0, 0, 0, 0
    for canary, now in zip(canaries, rendered, strict=True):
        if now.shape != canary.pixels.shape:
            raise ViewError(
                "a cached view has another size now",
                where=_name(canary),
                found="x".join(map(str, now.shape)),
                allowed="x".join(map(str, canary.pixels.shape)),
                do="Render at the size the cache was made with",
            )
        gap = np.abs(now.astype(np.int16) - canary.pixels)
        moved, values, changed = moved + int((gap > 0).sum()), values + gap.size, changed + bool(gap.any())
        if gap.max() > levels:
            y, x, c = np.unravel_index(int(gap.argmax()), gap.shape)
            levels, worst = int(gap.max()), f"{_name(canary)} at row {y}, column {x}, channel {c}"
    report = {"views": len(canaries), "changed": changed, "pixels": moved / max(1, values), "levels": levels}
    if levels > tolerance:
        loosen = "; --canary-tolerance 1 accepts one level" if levels == 1 else ""
        raise ViewError(
            f"{changed} of {len(canaries)} cached views look different when rendered here "
            f"({100 * report['pixels']:.2g} % of values)",
            where=worst,
            found=f"{levels} levels",
            allowed=str(tolerance),
            do=f"Use the library versions in the cache's provenance on a machine like the one that made it{loosen}",
        )
    return report


def _name(canary: Canary) -> str:
    return f"{canary.shard}:{canary.key} view {canary.view}"
