"""One worker's share of a batch: read, decode, render, and the cached targets of the same rows."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cache import CacheReader
from pipeline.loader.batch import Batch
from pipeline.loader.order import Order
from pipeline.shards import BlockReader, Index
from pipeline.views import BlockViews, View, ViewsConfig
from pipeline.views.sample import decode_sample


@dataclass
class _Open:
    """A block while some of its rows are still to come."""

    first: int
    data: list
    drawn: BlockViews
    targets: dict[str, np.ndarray]
    left: int


class RowReader:
    """Renders rows in the order asked for, holding a block open from its first row to its last.

    Args:
        index, config, size: what to render and how large.
        cache: where targets come from, or None.
    """

    def __init__(self, index: Index, config: ViewsConfig, size: int, cache: CacheReader | None) -> None:
        self._index, self._config, self._size, self._cache = index, config, size, cache
        self._reader = BlockReader(index)
        self._starts = np.asarray(index.block_first[:-1])
        self._open: dict[int, _Open] = {}
        self._left: np.ndarray | None = None

    def begin(self, rows: np.ndarray) -> None:
        """Announce all the rows to come, so that each block can be let go after its last."""
        self._open.clear()
        self._left = np.bincount(self._blocks(rows), minlength=len(self._starts))

    def batch(self, rows: np.ndarray, view: View, order: Order, epoch: int, step: int) -> Batch:
        """The batch (or part of one) of these global rows, all in one view."""
        size, count = self._size, len(rows)
        images = np.empty((count, size, size, 3), np.uint8)
        pieces: dict[str, list[np.ndarray]] = {}
        for i, (row, block) in enumerate(zip(rows.tolist(), self._blocks(rows).tolist(), strict=True)):
            opened = self._open.get(block) or self._start(block, view)
            at = row - opened.first
            opened.drawn.render(at, decode_sample(self._index, row, opened.data[at], self._config), images[i])
            for name, values in opened.targets.items():
                pieces.setdefault(name, []).append(values[at])
            opened.left -= 1
            if opened.left == 0:
                del self._open[block]
        whole = order.rows[order.bounds[step] : order.bounds[step + 1]]
        labels = self._index.labels
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(np.asarray(labels[rows], np.int64)),
            rows=torch.from_numpy(rows),
            views=torch.full((count,), -1 if view == "center" else int(view), dtype=torch.int64),
            epoch=epoch,
            step=step,
            global_rows=len(whole),
            global_labelled=int((labels[whole] >= 0).sum()),
            targets=self._stack(pieces),
        )

    def close(self) -> None:
        """Close the shards."""
        self._open.clear()
        self._reader.close()

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _start(self, block: int, view: View) -> _Open:
        assert self._left is not None
        index, rows = self._index, self._index.rows(block)
        shard = index.shard_of(rows.start)
        targets = {}
        if self._cache is not None:
            start = rows.start - shard.first
            targets = self._cache.read(shard.name, view, start, start + len(rows))
        opened = _Open(
            first=rows.start,
            data=list(self._reader.read(block)),
            drawn=BlockViews(self._config, shard.name, index.keys(rows.start, rows.stop), view),
            targets=targets,
            left=int(self._left[block]),
        )
        self._open[block] = opened
        return opened

    def _stack(self, pieces: dict[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
        if self._cache is None:
            return {}
        fields = self._cache.selection.encoding.fields()
        return {
            f.name: torch.from_numpy(np.stack(pieces[f.name]) if f.name in pieces else np.empty((0, *f.shape), f.dtype))
            for f in fields
        }
