"""What is stored beside the arrays: parts of the teacher, and how its final map is distributed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdpipe._util.machine import cores
from kdpipe.cache import Cache, read_canaries
from kdpipe.cache.layout import in_order
from kdpipe.cache.modules import put_calibration, put_part
from kdpipe.cache.select import HEAD, TAIL
from kdpipe.caching.output_checks import require_finite
from kdpipe.shards import BlockReader, Index
from kdpipe.targets import Calibration, TargetsConfig
from kdpipe.teacher import Teacher, head_parts, tail_parts
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import paired_index, render_rows
from kdpipe.views.canaries import COUNT, spread

Tensors = dict[str, torch.Tensor]

# A calibration is fitted to so many views of so many blocks, and to fewer where their values would fill the memory.
VIEWS, _BLOCKS, _VALUES = 512, 8, 2**26
# What a part is tried on before there is a cache with views of its own.
_TRIED = 2


@dataclass(frozen=True)
class FitSample:
    """Views that calibrations are fitted to; the same for the same index and views in any process."""

    index: Index
    config: ViewsConfig
    views: Sequence[View]
    size: int
    threads: int | None


def parts_of(targets: TargetsConfig) -> tuple[str, ...]:
    """Parts of the teacher that go with what is kept."""
    return (*((HEAD,) if targets.pooled else ()), *((TAIL,) if targets.tail else ()))


def extract(cache: Cache, teacher: Teacher, names: Sequence[str]) -> None:
    """Store parts of a teacher in its cache, with their outputs for the cache's canaries.

    Raises:
        TeacherError: it has no such part, or can't be built again as it was before its branches were merged.
        CacheError: it can't be written.
    """
    pixels = np.stack([canary.pixels for canary in read_canaries(cache)])
    for name, tensors, about in _taken(teacher, names, pixels):
        put_part(cache, name, tensors, about)


def try_extracting(teacher: Teacher, names: Sequence[str]) -> dict[str, int]:
    """Take parts out of a teacher and leave them; their bytes by name. Raises TeacherError as `extract`."""
    size = teacher.built.input_size
    noise = np.random.default_rng(0).integers(0, 256, (_TRIED, size, size, 3), dtype=np.uint8)
    return {name: _bytes(tensors, noise) for name, tensors, _ in _taken(teacher, names, noise)}


def _taken(teacher: Teacher, names: Sequence[str], images: np.ndarray) -> Iterator[tuple[str, Tensors, dict[str, Any]]]:
    """Parts with their tensors and the records about them."""
    if not names:
        return
    plain, x = teacher.original(), teacher.normalized(images).contiguous()
    if HEAD in names:
        yield HEAD, head_parts(plain, teacher.built, x), {"teacher": teacher.weights}
    if TAIL in names:
        yield TAIL, *tail_parts(plain, teacher.built, x, teacher.weights)


def _bytes(tensors: Tensors, images: np.ndarray) -> int:
    """Of a part whose probes are as many as canaries."""
    sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in tensors.items()}
    return sum(n * COUNT // len(images) if key.startswith("probe_") else n for key, n in sizes.items())


def calibrate(cache: Cache, teacher: Teacher, sample: FitSample, rank: int | None) -> str:
    """Fit a calibration of the teacher's final map and store it; returns its name.

    Args:
        cache: the teacher's.
        teacher: that gives its map.
        sample: of which up to 512 views are looked at, in up to 8 blocks.
        rank: components of the basis; None for statistics of the channels alone.

    Raises:
        TeacherError: the teacher's output has NaN or infinity.
        CacheError: it can't be written.
    """
    tokens, views = fit_tokens(teacher, sample)
    fitted = Calibration.fit(tokens, rank)
    about = {"rank": rank, "explained": fitted.explained, "views": views, "tokens": len(tokens)}
    return put_calibration(cache, fitted, about)


def fitted_to(views: Sequence[View]) -> tuple[View, ...]:
    """Of the requested views, those that a calibration is fitted to, in any order of the request."""
    return tuple(in_order(view for view in views if isinstance(view, int)) or in_order(views))


def fit_tokens(teacher: Teacher, sample: FitSample) -> tuple[torch.Tensor, int]:
    """Tokens float32 (n, D) that a calibration is fitted to, and of how many views they are."""
    index, count = sample.index, VIEWS
    views = fitted_to(sample.views)
    blocks = spread(index.blocks, _BLOCKS)
    each = -(-VIEWS // len(blocks))
    reader = BlockReader(paired_index(index, sample.config))
    found: list[torch.Tensor] = []
    seen = 0
    with ThreadPoolExecutor(sample.threads or cores()) as pool:
        # Each block first with another view, so that few views of all requested are as good as many.
        for turn, (place, block) in ((t, b) for t in range(len(views)) for b in enumerate(blocks)):
            rows = index.rows(block)[: max(0, min(each, count - seen))]
            if not rows:
                break
            view = views[(place + turn) % len(views)]
            rendered = render_rows(reader, sample.config, rows, [view], sample.size, pool)
            output = teacher(rendered.pixels[0], rendered.erased[0])
            require_finite(output, index, rows, view, teacher.config.amp_dtype)
            assert output.map is not None, "the teacher doesn't give its map"
            count = min(VIEWS, max(1, _VALUES // output.map[0].numel()))
            found.append(output.map.movedim(1, -1).flatten(0, 2).cpu())
            seen += len(rows)
    reader.close()
    return torch.cat(found), seen
