"""Pairs of rows that are mixed with each other, and so move through an epoch together."""

from typing import Any

import numpy as np

from kdpipe.loader.order import row_type
from kdpipe.shards import Index
from kdpipe.views import ViewsConfig
from kdpipe.views.mixing import coins, members, partner_names, partners

_BLOCKS = 512  # drawn in one go


class MixingPairs:
    """Who is paired with whom in the blocks of an index.

    Args:
        index: whose blocks' rows are paired, see `views.block.paired_index`.
        config: a policy that mixes.
        blocks: how many of them matter, from the first.
    """

    def __init__(self, index: Index, config: ViewsConfig, blocks: int) -> None:
        self._index, self._config = index, config
        self._rows = [index.rows(block) for block in range(blocks)]
        self._members: list[tuple[str, str]] | None = None
        self._last: tuple[int, np.ndarray] | None = None

    def paired(self, view: int) -> np.ndarray:
        """The row that each row is paired with in a view, itself where it is alone, to the last block's end."""
        group = view // self._config.mix_every
        if self._last is None or self._last[0] != group:
            self._last = group, self._drawn(view)
        return self._last[1]

    def mixed(self, view: int) -> np.ndarray:
        """Like `paired`, but itself where a random draw leaves the pair unmixed."""
        found = self.paired(view)
        if self._config.mixup_prob == 1:
            return found
        found = found.copy()
        for rows, name in zip(self._rows, self._names(), strict=True):
            part = found[rows.start : rows.stop]
            own = np.arange(rows.start, rows.stop)
            first = np.flatnonzero(part > own)
            unmixed = first[~coins(self._config, *name, view, len(first))]
            for member in (unmixed, part[unmixed] - rows.start):
                part[member] = own[member]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # as long as the index, and soon drawn again

    def _drawn(self, view: int) -> np.ndarray:
        count = self._rows[-1].stop if self._rows else 0
        found = np.arange(count, dtype=row_type(count))
        by_length: dict[int, list[int]] = {}
        for block, rows in enumerate(self._rows):
            by_length.setdefault(len(rows), []).append(block)
        names = self._names()
        for length, blocks in by_length.items():
            for start in range(0, len(blocks), _BLOCKS):
                some = blocks[start : start + _BLOCKS]
                drawn = partners(partner_names(self._config, [names[b] for b in some], view), length)
                firsts = np.array([self._rows[b].start for b in some])[:, None]
                place = firsts + np.arange(length)
                found[place] = np.where(drawn >= 0, firsts + drawn, place)
        return found

    def _names(self) -> list[tuple[str, str]]:
        """Shard and membership of each block, the same in every epoch."""
        if self._members is None:
            index = self._index
            self._members = [(index.shard_of(r.start).name, members(index.keys(r.start, r.stop))) for r in self._rows]
        return self._members


def pair_units(rows: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """Rows of one block, ascending (n,), as pairs: (units, 2), -1 where a row's partner is absent or it has none."""
    partner = paired[rows]
    together = (partner >= rows[0]) & (partner <= rows[-1]) & (partner != rows)
    if rows[-1] - rows[0] >= len(rows):  # some rows of the block are left out
        together &= np.isin(partner, rows)
    alone, first = rows[~together], together & (rows < partner)
    pairs = np.stack([rows[first], partner[first]], axis=1)
    return np.concatenate([pairs, np.stack([alone, np.full_like(alone, -1)], axis=1)])
