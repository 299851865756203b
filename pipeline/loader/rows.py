"""One worker's share of a batch: read, decode, render, and the cached targets of the same rows."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cache import CacheReader
from pipeline.loader.batch import Batch
from pipeline.loader.order import Order
from pipeline.shards import BlockReader, Index
from pipeline.targets import Encoding
from pipeline.views import BlockViews, View, ViewsConfig
from pipeline.views.sample import decode_sample


class TargetRows:
    """Rows of cached targets, picked from open blocks one by one and handed out as a batch."""

    def __init__(self, encoding: Encoding) -> None:
        self._fields = encoding.fields()
        self._open: dict[int, list[np.ndarray]] = {}
        self._taken: list[list[np.ndarray]] = [[] for _ in self._fields]

    def __contains__(self, block: int) -> bool:
        return block in self._open

    def open(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        """Hold a block's rows, by field name, until `drop`."""
        self._open[block] = [arrays[f.name] for f in self._fields]

    def drop(self, block: int) -> None:
        """Let a block go."""
        del self._open[block]

    def take(self, block: int, row: int) -> None:
        """Add a row of an open block to the batch."""
        for taken, array in zip(self._taken, self._open[block], strict=True):
            taken.append(array[row])

    def batch(self) -> dict[str, torch.Tensor]:
        """The rows taken since the last call, by field name."""
        out = {}
        for field, taken in zip(self._fields, self._taken, strict=True):
            rows = np.stack(taken) if taken else np.empty((0, *field.shape), field.dtype)
            out[field.name] = torch.from_numpy(rows)
            taken.clear()
        return out

    def clear(self) -> None:
        """Let everything go."""
        self._open.clear()
        for taken in self._taken:
            taken.clear()


@dataclass
class _Open:
    """A block while some of its rows are still to come."""

    first: int
    data: list
    drawn: BlockViews
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
        self._targets = None if cache is None else TargetRows(cache.encoding)
        self._left: np.ndarray | None = None

    def begin(self, rows: np.ndarray) -> None:
        """Announce all the rows to come, so that each block can be let go after its last."""
        self._clear()
        self._left = np.bincount(self._blocks(rows), minlength=len(self._starts))

    def batch(self, rows: np.ndarray, view: View, order: Order, epoch: int, step: int) -> Batch:
        """The batch (or part of one) of these global rows, all in one view."""
        size, count = self._size, len(rows)
        images = np.empty((count, size, size, 3), np.uint8)
        for i, (row, block) in enumerate(zip(rows.tolist(), self._blocks(rows).tolist(), strict=True)):
            opened = self._open.get(block) or self._start(block, view)
            at = row - opened.first
            opened.drawn.render(at, decode_sample(self._index, row, opened.data[at], self._config), images[i])
            if self._targets is not None:
                self._targets.take(block, at)
            opened.left -= 1
            if opened.left == 0:
                self._end(block)
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
            targets={} if self._targets is None else self._targets.batch(),
        )

    def close(self) -> None:
        """Close the shards."""
        self._clear()
        self._reader.close()

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _start(self, block: int, view: View) -> _Open:
        assert self._left is not None
        index, rows = self._index, self._index.rows(block)
        shard = index.shard_of(rows.start)
        if self._cache is not None and self._targets is not None:
            start = rows.start - shard.first
            self._targets.open(block, self._cache.read(shard.name, view, start, start + len(rows)))
        opened = _Open(
            first=rows.start,
            data=list(self._reader.read(block)),
            drawn=BlockViews(self._config, shard.name, index.keys(rows.start, rows.stop), view),
            left=int(self._left[block]),
        )
        self._open[block] = opened
        return opened

    def _end(self, block: int) -> None:
        del self._open[block]
        if self._targets is not None:
            self._targets.drop(block)

    def _clear(self) -> None:
        self._open.clear()
        if self._targets is not None:
            self._targets.clear()
