"""From the bytes of a block to its views, with errors that name the sample."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.errors import ImageError, ShardError
from kdpipe.shards import BlockReader, Index
from kdpipe.views.draws import View
from kdpipe.views.erasing import Erased
from kdpipe.views.policy import ViewsConfig

if TYPE_CHECKING:
    from kdpipe.views.render import BlockViews


def decode_sample(index: Index, row: int, data: bytes | memoryview, config: ViewsConfig) -> np.ndarray:
    """A sample's image, uint8 (H, W, 3).

    Raises:
        ShardError: the bytes are no usable image; names shard, key and byte offset.
    """
    # Here, because what is read of a cache alone needs no OpenCV and torch.
    from kdpipe.shards.images import decode

    try:
        return decode(data, config.exif)
    except ImageError as e:
        shard = index.shard_of(row)
        raise ShardError(
            f"image can't be decoded: {e.what}",
            where=f"{shard.name} key {index.key(row)} at byte {int(index.image_start[row])}",
            do="Repair the shard, or leave such samples out with kdpipe index --skip-bad",
        ) from e


def paired_index(index: Index, config: ViewsConfig) -> Index:
    """The index whose blocks' rows are paired by mixing.

    A limit cuts the last block, but not its samples' partners: views must not depend on the limit. Where the
    student mixes targets, views don't, and a partner beyond the limit may not be cached.
    """
    return index.full if config.mixes and config.mix == "views" else index


def labelling_index(index: Index, config: ViewsConfig) -> Index:
    """The index with all samples whose labels its views may show: mixing reaches to the end of the last block."""
    whole = paired_index(index, config)
    return whole.limit(int(whole.block_first[index.blocks]))


def block_views(index: Index, config: ViewsConfig, block: int, view: View) -> BlockViews:
    """A view's draws for a whole block of `paired_index`."""
    from kdpipe.views.render import BlockViews

    rows = index.rows(block)
    return BlockViews(config, index.shard_of(rows.start).name, index.keys(rows.start, rows.stop), view)


@dataclass(frozen=True)
class Rendered:
    """Views of n samples.

    Attributes:
        pixels: uint8 (views, n, S, S, 3).
        erased: where, for each view; None where it isn't erased.
        labels: int64 (views, n), of mixed views those with the larger share; -1 where there is none.
    """

    pixels: np.ndarray
    erased: list[Erased | None]
    labels: np.ndarray


def render_rows(
    reader: BlockReader,
    config: ViewsConfig,
    rows: range,
    views: Sequence[View],
    size: int,
    pool: Executor,
) -> Rendered:
    """Views of consecutive samples of one block, each image decoded once.

    Partners outside `rows` are decoded too, where they are mixed. The samples are spread over `pool`, whose
    size has no influence on the pixels.

    Args:
        reader: of the `paired_index`.
        config: the policy.
        rows: of one block.
        views: to render.
        size: pixels a side.
        pool: threads.
    """
    index = reader.index
    block = index.block_of(rows[0])
    first, data = index.rows(block).start, reader.read(block)
    drawn = [block_views(index, config, block, view) for view in views]
    own = range(rows.start - first, rows.stop - first)
    # Of each view the rows to render: those requested and their partners.
    needed = [{*own, *(p for i in own if (p := drawing.partner(i)) is not None)} for drawing in drawn]
    wanted = [*own, *sorted(set().union(*needed).difference(own))]
    places = {i: place for place, i in enumerate(wanted)}
    out = np.empty((len(views), len(wanted), size, size, 3), np.uint8)
    boxes: list[list[np.ndarray | None]] = [[None] * len(own) for _ in views]

    def render(i: int) -> None:
        image = decode_sample(index, first + i, data[i], config)
        for v, drawing in enumerate(drawn):
            if i in needed[v]:
                drawing.render(i, image, out[v, places[i]])

    def finish(i: int) -> None:
        for v, drawing in enumerate(drawn):
            partner = drawing.partner(i)
            if i not in needed[v] or (partner is not None and partner < i):
                continue  # the first of a pair does the work for both
            if partner is not None:
                drawing.mix(i, out[v, places[i]], out[v, places[partner]])
            for row in (i, partner):
                if row is not None and row in own:
                    boxes[v][row - own.start] = drawing.erase(row, out[v, places[row]])

    for step in (render, finish):
        for _ in pool.map(step, wanted):
            pass
    whole = np.array(index.labels[first : index.rows(block).stop], np.int64)
    labels = [whole if drawing.mixing is None else drawing.mixing.labels(whole) for drawing in drawn]
    return Rendered(
        pixels=out[:, : len(own)],
        erased=[Erased.of(config, of_view) for of_view in boxes],
        labels=np.stack(labels)[:, own.start : own.stop],
    )
