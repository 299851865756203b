"""A small seeded part of an index: whole blocks spread over the shards, and the teacher's outputs on them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdpipe.shards import Index
from kdpipe.teacher import TeacherOutput
from kdpipe.views import View
from kdpipe.views.draws import permutation

SHARE = 0.02
# A single one would show no spread.
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class SampledOutputs:
    """The teacher's outputs on some rows of one block.

    Attributes:
        rows: of the index.
        views: n of them.
        logits: float32 (n, rows, classes), on the CPU.
        labels: int64 (n, rows), -1 where there is none.
        pooled, map: float32 (n, rows, D) and (n, rows, D, h, w), on the CPU; None unless the encoding has them.
    """

    rows: range
    views: tuple[View, ...]
    logits: torch.Tensor
    labels: torch.Tensor
    pooled: torch.Tensor | None = None
    map: torch.Tensor | None = None

    def output(self, place: int) -> TeacherOutput:
        """The outputs on the view at this place of `views`."""
        found = {name: getattr(self, name) for name in TeacherOutput._fields}
        return TeacherOutput(**{name: x[place] for name, x in found.items() if x is not None})


def choose_blocks(index: Index, seed: int = 0) -> list[range]:
    """Rows of whole blocks, at most 2 % of the samples or two blocks, from as many shards as possible.

    The order is random, so that the first few are a sample too. The short blocks that end a shard come last.
    """
    sizes = np.diff(index.block_first)
    # One block of each shard, then another of each, and so on.
    turns: Counter[tuple[bool, int]] = Counter()
    places: dict[int, tuple[bool, int]] = {}
    for block in permutation(index.blocks, "plan", seed).tolist():
        kind = bool(sizes[block] < sizes.max() / 2), int(index.block_shard[block])
        turns[kind] += 1
        places[block] = kind[0], turns[kind]
    chosen: list[range] = []
    taken = 0
    for block in sorted(places, key=places.__getitem__):
        taken += int(sizes[block])
        if len(chosen) >= _LEAST_BLOCKS and taken > SHARE * len(index):
            break
        chosen.append(index.rows(block))
    return chosen


def choose_views(views: Sequence[View], most: int = 4) -> list[View]:
    """At most so many, evenly spaced, so that numbered and evaluation views have about their shares."""
    return [views[i] for i in sorted(set(np.linspace(0, len(views) - 1, most).round().astype(int).tolist()))]
