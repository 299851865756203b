"""From a sample's bytes to its views, with errors that name the sample."""

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from pipeline.errors import ImageError, ShardError
from pipeline.shards import Index
from pipeline.shards.images import decode
from pipeline.views.draws import View
from pipeline.views.policy import ViewsConfig
from pipeline.views.render import BlockViews


def decode_sample(index: Index, row: int, data: bytes | memoryview, config: ViewsConfig) -> np.ndarray:
    """A sample's image, uint8 (H, W, 3).

    Raises:
        ShardError: the bytes are no usable image; names shard, key and byte offset.
    """
    try:
        return decode(data, config.exif)
    except ImageError as e:
        shard = index.shard_of(row)
        raise ShardError(
            f"image can't be decoded: {e.what}",
            where=f"{shard.name} key {index.key(row)} at byte {int(index.image_start[row])}",
            do="Mend the shard, or leave such samples out with kdpipe index --skip-bad",
        ) from e


def render_rows(
    index: Index,
    config: ViewsConfig,
    rows: range,
    data: Sequence[bytes | memoryview],
    views: Sequence[View],
    size: int,
    pool: Executor,
) -> np.ndarray:
    """Views of consecutive samples of one shard: uint8 (views, rows, size, size, 3); each image decoded once.

    The samples are spread over `pool`, whose size has no influence on the pixels.
    """
    shard, keys = index.shard_of(rows[0]).name, index.keys(rows.start, rows.stop)
    drawn = [BlockViews(config, shard, keys, view) for view in views]
    out = np.empty((len(views), len(rows), size, size, 3), np.uint8)

    def one(i: int) -> None:
        image = decode_sample(index, rows[i], data[i], config)
        for v, block in enumerate(drawn):
            block.render(i, image, out[v, i])

    for _ in pool.map(one, range(len(rows))):
        pass
    return out
