"""The rows of an index that training shows, block by block."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from kdpipe.loader.order import row_type
from kdpipe.shards import Index


class RowBlocks(Sequence[np.ndarray]):
    """Rows of each block, ascending (n,), none empty; made on request, so that no process holds them all.

    Args:
        index: whose rows.
        labelled_only: leave unlabelled samples out, and blocks of nothing else.

    Attributes:
        rows: how many in all blocks.
    """

    def __init__(self, index: Index, labelled_only: bool) -> None:
        self._index, self._labelled_only = index, labelled_only
        counts = np.diff(index.block_first)
        if labelled_only:
            counts = np.add.reduceat(index.labels >= 0, index.block_first[:-1], dtype=np.int64)
        self._blocks = np.flatnonzero(counts)
        self.rows = int(counts.sum())

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> list[np.ndarray]: ...
    def __getitem__(self, at: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        rows = self._index.rows(int(self._blocks[at]))
        found = np.arange(rows.start, rows.stop, dtype=row_type(len(self._index)))
        return found[self._index.labels[rows.start : rows.stop] >= 0] if self._labelled_only else found
