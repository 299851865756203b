"""The work of one task: one shard of one segment, from tar to arrays."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from kdpipe.cache import Segment
from kdpipe.caching.output_checks import require_finite, require_fit
from kdpipe.errors import TargetsError
from kdpipe.shards import BlockReader, Index
from kdpipe.shards.index import Shard
from kdpipe.targets import Calibration, Quality
from kdpipe.targets.quality import quality
from kdpipe.teacher import Teacher
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import Rendered, paired_index, render_rows

# Rendered views in flight: this many bytes being made while as many are before the teacher.
_BUFFER_BYTES = 256 * 2**20

T = TypeVar("T")
R = TypeVar("R")


def run_task(
    index: Index,
    config: ViewsConfig,
    teacher: Teacher,
    segment: Segment,
    shard: Shard,
    size: int,
    threads: int,
    calibration: Calibration | None = None,
) -> tuple[dict[str, np.ndarray], Quality]:
    """The teacher's outputs for the segment's views of one shard; `calibration` is that of its map.

    The teacher's batch is one view of one block, so results depend on nothing but the block. Rendering runs
    in the background while the teacher works.

    Returns:
        fields: by name (views, samples, ...) in the segment's dtypes.
        quality: sums over the shard's views.

    Raises:
        ShardError: a sample can't be read or decoded.
        TeacherError: the teacher's output has NaN, infinity, or more than the segment's dtypes hold.
        TargetsError: what the encoding loses can't be measured.
    """
    encoding, total = segment.encoding, Quality()
    fields = {f.name: np.empty((len(segment.views), shard.samples, *f.shape), f.dtype) for f in encoding.fields()}
    for rows, first_view, rendered in _rendered(index, config, segment.views, shard, size, threads):
        place = slice(rows.start - shard.first, rows.stop - shard.first)
        for at in range(len(rendered.pixels)):
            v = first_view + at
            labels = torch.from_numpy(rendered.labels[at]).to(teacher.device)
            output = teacher(rendered.pixels[at], rendered.erased[at])
            require_finite(output, index, rows, segment.views[v], teacher.config.amp_dtype)
            encoded = encoding.encode(output, labels, calibration)
            require_fit(encoding, encoded, output, index, rows, segment.views[v])
            total.add(quality(output, labels, encoding, encoded, calibration))
            for name, array in encoded.items():
                fields[name][v, place] = array
    _require_measured(total, shard)
    return fields, total


def _require_measured(total: Quality, shard: Shard) -> None:
    """Refuse sums that a record can't hold, before anything of the task is written."""
    wrong = [name for name, value in total.json().items() if not math.isfinite(value)]
    if wrong:
        raise TargetsError(
            f"{wrong[0]}, which the encoding loses, is not finite",
            where=shard.name,
            found=total.json()[wrong[0]],
            do="Keep more of it: --dtype, --pooled or --feature-map float32, or no --feature-map-rank",
        )


def views_a_step(index: Index, size: int) -> int:
    """Views of a block that are rendered from one decoding, so that their pixels fit the buffer."""
    return max(1, _BUFFER_BYTES // (index.block_size * size * size * 3))


def one_ahead(items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, while the caller is busy with the one before."""
    with ThreadPoolExecutor(1) as ahead:
        waiting: tuple[T, Future[R]] | None = None
        try:
            for item in items:
                coming = item, ahead.submit(work, item)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = coming
            if waiting is not None:
                yield waiting[0], waiting[1].result()
        finally:
            ahead.shutdown(wait=True, cancel_futures=True)


def _rendered(
    index: Index, config: ViewsConfig, views: Sequence[View], shard: Shard, size: int, threads: int
) -> Iterator[tuple[range, int, Rendered]]:
    """(rows of a block, position of the first view, those views of them), one step ahead of the caller."""
    group = views_a_step(index, size)
    blocks = range(shard.first_block, shard.first_block + shard.blocks)
    steps = itertools.product(map(index.rows, blocks), range(0, len(views), group))
    reader = BlockReader(paired_index(index, config))
    with ThreadPoolExecutor(threads) as pool:

        def render(step: tuple[range, int]) -> Rendered:
            rows, start = step
            return render_rows(reader, config, rows, views[start : start + group], size, pool)

        try:
            for (rows, start), rendered in one_ahead(steps, render):
                yield rows, start, rendered
        finally:
            reader.close()
