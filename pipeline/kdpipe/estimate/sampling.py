"""A small seeded part of an index: whole blocks spread over the shards, and what the teacher says of them."""

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
# Fewer say nothing about their spread.
_LEAST_BLOCKS = 2


@dataclass(frozen=True)
class SampledOutputs:
    """The teacher's word on some rows of one block.

    Attributes:
        rows: of the index.
        views: n of them.
        logits: float32 (n, rows, classes), on the CPU.
        labels: int64 (n, rows), -1 where there is none.
        pooled, map: float32 (n, rows, D) and (n, rows, D, h, w), on the CPU; None unless asked for.
    """

    rows: range
    views: tuple[View, ...]
    logits: torch.Tensor
    labels: torch.Tensor
    pooled: torch.Tensor | None = None
    map: torch.Tensor | None = None

    def output(self, place: int) -> TeacherOutput:
        """What it said of the view at this place of `views`."""
        said = {name: getattr(self, name) for name in TeacherOutput._fields}
        return TeacherOutput(**{name: x[place] for name, x in said.items() if x is not None})

    @property
    def count(self) -> int:
        """Views of samples."""
        return len(self.rows) * len(self.views)


def choose_blocks(index: Index, seed: int = 0) -> list[range]:
    """Rows of whole blocks, at most 2 % of the samples or two blocks, from as many shards as possible.

    The order is random as well: the first few are a sample too. The short blocks that end a shard come last.
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
    """A few that stand for all: up to `most` numbered ones, which are alike, and one evaluation view."""
    numbers = [v for v in views if isinstance(v, int)]
    return [*numbers[:most], *[v for v in views if not isinstance(v, int)][:1]]


def cut(blocks: Sequence[range], rows: int) -> list[range]:
    """The first `rows` rows of each block; where there is only one block, two parts of it."""
    if len(blocks) == 1 and len(blocks[0]) > 1:
        whole, half = blocks[0], min(rows, -(-len(blocks[0]) // 2))
        return [whole[:half], whole[half : 2 * half]]
    return [block[:rows] for block in blocks]
