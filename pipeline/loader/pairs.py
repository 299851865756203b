"""Pairs of rows that are mixed with each other, and so move through an epoch together."""

import numpy as np

from pipeline.shards import Index
from pipeline.views import ViewsConfig
from pipeline.views.mixing import partners


def paired_rows(index: Index, config: ViewsConfig, view: int) -> np.ndarray:
    """The row that each row of an index is mixed with in a view, itself where it has no partner: int64 (N,)."""
    found = np.arange(len(index), dtype=np.int64)
    for block in range(index.blocks):
        rows = index.rows(block)
        drawn = partners(config, index.shard_of(rows.start).name, index.keys(rows.start, rows.stop), view)
        there = drawn >= 0
        found[rows.start : rows.stop][there] = rows.start + drawn[there]
    return found


def pair_units(rows: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """Rows of one block, int64 (n,), as pairs: int64 (units, 2), -1 where a row's partner is absent or it has none."""
    partner = paired[rows]
    together = np.isin(partner, rows) & (partner != rows)
    alone, first = rows[~together], together & (rows < partner)
    pairs = np.stack([rows[first], partner[first]], axis=1)
    return np.concatenate([pairs, np.stack([alone, np.full_like(alone, -1)], axis=1)])
