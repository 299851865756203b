"""One worker's share of a batch: read, decode, render, mix, and the cached targets of the same rows."""

from dataclasses import dataclass, field

import numpy as np
import torch

from kdpipe.cache import CacheReader, MultiCacheReader
from kdpipe.loader.batch import Batch, view_code
from kdpipe.loader.block_spill import BlockSpill, SpilledBlock
from kdpipe.loader.target_rows import TargetRows
from kdpipe.loader.worker_share import WorkerShare
from kdpipe.shards import BlockReader, Index
from kdpipe.shards.sources import is_local
from kdpipe.views import BlockViews, Erased, View, ViewsConfig
from kdpipe.views.block import block_views, decode_sample, paired_index
from kdpipe.views.mixing import mixed_labels


@dataclass
class _Open:
    """A block while some of its rows are still to come.

    Attributes:
        first: its first row.
        data: its encoded images; of a remote shard they lie on local disk.
        left: rows still to come.
        drawn: its views so far.
        ready: views that are made already, by row in the block and view: partners of delivered ones.
    """

    first: int
    data: SpilledBlock | list[memoryview]
    left: int
    drawn: dict[View, BlockViews] = field(default_factory=dict)
    ready: dict[tuple[int, View], np.ndarray] = field(default_factory=dict)


class RowReader:
    """Renders rows in the requested order, holding a block open from its first row to its last.

    Args:
        index, config, size: what to render and how large.
        cache: where targets come from, or None.
    """

    def __init__(
        self, index: Index, config: ViewsConfig, size: int, cache: CacheReader | MultiCacheReader | None
    ) -> None:
        self._index, self._config, self._size, self._cache = index, config, size, cache
        # A partner may lie beyond the limit of the index, but not of the cache where its targets are mixed in.
        self._whole = paired_index(index, config)
        self._reader = BlockReader(self._whole)
        self._starts = np.asarray(self._whole.block_first[:-1])
        self._open: dict[int, _Open] = {}
        self._spool: BlockSpill | None = None
        self._targets, self._partners = None, None
        if cache is not None:
            self._targets = TargetRows(cache.fields)
            self._partners = TargetRows(cache.fields) if config.mixes and config.mix == "targets" else None
        self._left: np.ndarray | None = None
        self._images: dict[int, np.ndarray] = {}
        self._unit = -1

    def begin(self, rows: np.ndarray) -> None:
        """Announce all the rows to come, so that each block can be freed after its last."""
        self._clear()
        self._left = np.bincount(self._blocks(rows), minlength=len(self._starts))
        self._expected = np.zeros(len(self._whole), bool)
        self._expected[rows] = True

    def batch(self, share: WorkerShare, epoch: int, step: int) -> Batch:
        """One step's batch, or the part of it that is in a share."""
        chosen = share.at(step)
        rows, views = share.rows[chosen].astype(np.int64), [share.views[v] for v in share.shown[chosen].tolist()]
        size, count, labels = self._size, len(rows), self._whole.labels
        images = np.empty((count, size, size, 3), np.uint8)
        boxes: list[np.ndarray | None] = []
        partners, lam = rows.copy(), np.ones(count)
        blocks = self._blocks(rows).tolist()
        for n, (row, block, unit) in enumerate(zip(rows.tolist(), blocks, share.units[chosen].tolist(), strict=True)):
            if unit != self._unit:
                self._images, self._unit = {}, unit
            view = views[n]
            opened = self._open.get(block) or self._start(block)
            drawn = opened.drawn.get(view) or self._draw(block, opened, view)
            at = row - opened.first
            self._render(opened, drawn, at, view, images[n])
            boxes.append(drawn.erase(at, images[n]))
            if drawn.mixing is not None and drawn.mixing.mixed[at]:
                partners[n], lam[n] = opened.first + drawn.mixing.partner[at], drawn.mixing.lam[at]
            for taken, taken_row in ((self._targets, row), (self._partners, partners[n])):
                if taken is not None:
                    taken.take((block, view), int(taken_row) - opened.first)
            opened.left -= 1
            if opened.left == 0:
                self._end(block)
        pairs = np.stack([labels[rows], labels[partners]], axis=1).astype(np.int64)
        mixes = self._config.mixes and isinstance(share.views[0], int)
        return Batch(
            images=torch.from_numpy(images),
            labels=torch.from_numpy(mixed_labels(pairs, lam)),
            rows=torch.from_numpy(rows),
            views=torch.tensor([view_code(v) for v in views], dtype=torch.int64),
            epoch=epoch,
            step=step,
            global_rows=int(share.global_rows[step]),
            global_labelled=int(share.global_labelled[step]),
            targets={} if self._targets is None else self._targets.batch(),
            erased=self._erased(boxes, share.views[0]),
            label_pairs=torch.from_numpy(pairs) if mixes else None,
            lam=torch.from_numpy(lam.astype(np.float32)) if mixes else None,
            partner_targets={} if self._partners is None else self._partners.batch(),
        )

    def close(self) -> None:
        """Close the shards."""
        self._clear()
        self._reader.close()

    def _render(self, opened: _Open, drawn: BlockViews, at: int, view: View, out: np.ndarray) -> None:
        """A view before erasing; of a pair, the partner's too, kept if it will be requested."""
        ready = opened.ready.pop((at, view), None)
        if ready is not None:
            out[:] = ready
            return
        drawn.render(at, self._image(opened, at), out)
        partner = drawn.partner(at)
        if partner is not None:
            other = np.empty_like(out)
            drawn.render(partner, self._image(opened, partner), other)
            drawn.mix(at, out, other)
            if self._expected[opened.first + partner]:
                opened.ready[partner, view] = other

    def _image(self, opened: _Open, at: int) -> np.ndarray:
        """A decoded image, kept while its unit lasts."""
        row = opened.first + at
        if row not in self._images:
            self._images[row] = decode_sample(self._whole, row, opened.data[at], self._config)
        return self._images[row]

    def _erased(self, boxes: list[np.ndarray | None], view: View) -> Erased | None:
        if self._config.re_prob == 0 or not isinstance(view, int):
            return None
        return Erased.of(self._config, boxes)

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _start(self, block: int) -> _Open:
        assert self._left is not None
        opened = _Open(first=int(self._starts[block]), data=self._read(block), left=int(self._left[block]))
        self._open[block] = opened
        return opened

    def _read(self, block: int) -> SpilledBlock | list[memoryview]:
        images, whole = self._reader.read(block), self._whole
        if is_local(whole.url(whole.shards[int(whole.block_shard[block])])):
            return images
        if self._spool is None:
            self._spool = BlockSpill(int((whole.block_stop - whole.block_start).max()))
        return self._spool.put(images)

    def _draw(self, block: int, opened: _Open, view: View) -> BlockViews:
        drawn = block_views(self._whole, self._config, block, view)
        opened.drawn[view] = drawn
        if self._cache is not None and self._targets is not None:
            shard, count = self._whole.shard_of(opened.first), len(self._index.rows(block))
            start = opened.first - shard.first
            arrays = self._cache.read(shard.name, view, start, start + count)
            for rows in (self._targets, self._partners):
                if rows is not None:
                    rows.open((block, view), arrays)
        return drawn

    def _end(self, block: int) -> None:
        opened = self._open.pop(block)
        if self._spool is not None and isinstance(opened.data, SpilledBlock):
            self._spool.drop(opened.data)
        for view in opened.drawn:
            for rows in (self._targets, self._partners):
                if rows is not None:
                    rows.drop((block, view))

    def _clear(self) -> None:
        self._open.clear()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._images, self._unit = {}, -1
        for rows in (self._targets, self._partners):
            if rows is not None:
                rows.clear()
