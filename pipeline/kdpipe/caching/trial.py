"""The first batch, before a long run: what would make every task fail, or worthless, is refused here in one line."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import torch

from kdpipe._util.machine import cores
from kdpipe.caching.determinism import require_deterministic
from kdpipe.caching.modules import FitSample
from kdpipe.caching.output_checks import require_finite, require_fit
from kdpipe.errors import ImageError, ShardError
from kdpipe.shards import BlockReader
from kdpipe.targets import Encoding
from kdpipe.teacher import Teacher
from kdpipe.views.block import Rendered, paired_index, render_rows


def try_batch(teacher: Teacher, sample: FitSample, encoding: Encoding, *, nondeterministic: bool) -> None:
    """Run the first batch of the first view of a sample; three forwards.

    A batch that can't be rendered fails its own task and no other: then the next block's first batch is tried.

    Args:
        teacher: with the features that will be kept, run as it will be.
        sample: the run's index and views.
        encoding: what will be kept; a map on a basis is not tried, because its calibration may not be there yet.
        nondeterministic: whether outputs that differ from run to run are what the user wants.

    Raises:
        TeacherError: the outputs are not finite, too large for the encoding's dtypes, or no function of the input.
    """
    found = _first_batch(sample, teacher.config.batch_size)
    if found is None:
        return
    index, view = sample.index, sample.views[0]
    rows, rendered = found
    pixels, erased = rendered.pixels[0], rendered.erased[0]
    output = teacher(pixels, erased)
    require_finite(output, index, rows, view, teacher.config.amp_dtype)
    if encoding.map is not None and encoding.map.rank is not None:
        encoding = replace(encoding, map=None)
    encoded = encoding.encode(output, torch.from_numpy(rendered.labels[0]).to(teacher.device))
    require_fit(encoding, encoded, output, index, rows, view)
    if not nondeterministic:
        where = f"{teacher.built.name}: {index.shard_of(rows.start).name} view {view}"
        require_deterministic(teacher, pixels, erased, where)


def _first_batch(sample: FitSample, size: int) -> tuple[range, Rendered] | None:
    """Rows and pixels of the first block whose first batch can be rendered; None if no block's can."""
    index = sample.index
    reader = BlockReader(paired_index(index, sample.config))
    try:
        with ThreadPoolExecutor(sample.threads or cores()) as pool:
            for block in range(index.blocks):
                rows = index.rows(block)[:size]
                with suppress(ShardError, ImageError):
                    return rows, render_rows(reader, sample.config, rows, sample.views[:1], sample.size, pool)
    finally:
        reader.close()
    return None
