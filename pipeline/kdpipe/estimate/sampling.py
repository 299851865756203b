"""A small seeded part of an index: whole blocks spread over the shards, and the teacher's outputs on them."""

import itertools
from collections.abc import Iterator, Sequence
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
    most, taken = SHARE * len(index), 0
    chosen: list[range] = []
    for rows in _in_random_order(index, seed):
        if len(chosen) >= _LEAST_BLOCKS and taken + len(rows) > most:
            break
        chosen.append(rows)
        taken += len(rows)
    return chosen


def _in_random_order(index: Index, seed: int) -> Iterator[range]:
    """One block of each shard, then another of each, and so on; short ones after that."""
    sizes = np.diff(index.block_first)
    shards = [index.shards[i] for i in permutation(len(index.shards), "plan", seed).tolist()]
    for short in (False, True):
        left = []
        for shard in shards:
            of_shard = shard.first_block + permutation(shard.blocks, "plan", seed, shard.name)
            left.append(of_shard[(sizes[of_shard] < sizes.max() / 2) == short].tolist())
        for turn in itertools.zip_longest(*left):
            yield from (index.rows(block) for block in turn if block is not None)


def choose_views(views: Sequence[View], most: int = 4) -> list[View]:
    """At most so many, evenly spaced, so that numbered and evaluation views have about their shares."""
    return [views[i] for i in sorted(set(np.linspace(0, len(views) - 1, most).round().astype(int).tolist()))]
