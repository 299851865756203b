"""What a cache is a cache of, and the few views kept as pixels to prove it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kdpipe._util.fingerprint import fingerprint
from kdpipe.cache import Cache, read_canaries
from kdpipe.cache.cache import CLASS_NAMES
from kdpipe.errors import ViewError
from kdpipe.shards import BlockReader, Index
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import paired_index, render_rows
from kdpipe.views.canaries import COUNT, Canary, CanaryTolerance, compare, spread

# Canaries lie in few blocks, so that checking them on remote shards reads megabytes, not gigabytes.
_BLOCKS = 8
NONDETERMINISTIC = "nondeterministic"


def make_identity(
    index: Index, views: ViewsConfig, teacher: dict[str, Any], size: int, *, nondeterministic: bool = False
) -> dict[str, Any]:
    """Everything that decides the cached numbers and nothing that doesn't: no path, host, date or version.

    `nondeterministic`: the user allowed a teacher that is not a function of its input. It is left out where not, and
    so are names of classes where they are unknown: caches that were made before have neither.
    """
    declared: dict[str, Any] = {NONDETERMINISTIC: True} if nondeterministic else {}
    if index.classes is not None:
        declared[CLASS_NAMES] = index.classes
    return {**index.identity(), "views": views.identity(), "render_size": size, "teacher": teacher} | declared


def is_nondeterministic(cache: Cache) -> bool:
    """Whether a cache's identity declares its teacher nondeterministic."""
    return cache.identity.get(NONDETERMINISTIC) is True


def scratch_identity(samples: Sequence[int], block: int, num_classes: int) -> dict[str, Any]:
    """An identity for a cache of made-up targets; its shards have their positions for names."""
    none = fingerprint(None)
    shards = [{"name": str(i), "samples": n, "content": none, "labels": none} for i, n in enumerate(samples)]
    teacher = {
        "model": "none",
        "model_kwargs": {},
        "weights": none,
        "num_classes": num_classes,
        "input_size": 1,
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
    }
    views = ViewsConfig().identity()
    return {"block_size": block, "shards": shards, "views": views, "render_size": 1, "teacher": teacher}


def render_canaries(index: Index, config: ViewsConfig, views: Sequence[View], size: int) -> list[Canary]:
    """Up to 64 views spread over up to 8 blocks, with the requested views in turn."""
    chosen = spread(index.blocks, _BLOCKS)
    each = -(-COUNT // len(chosen))
    canaries: list[Canary] = []
    reader = BlockReader(paired_index(index, config.cached))
    for block in chosen:
        rows = index.rows(block)
        for place in spread(len(rows), each):
            view = views[len(canaries) % len(views)]
            canaries.append(_canary(index, reader, config, rows[place], view, size))
    reader.close()
    return canaries[:COUNT]


def check_canaries(cache: Cache, index: Index, config: ViewsConfig, tolerance: CanaryTolerance) -> dict[str, Any]:
    """Render a cache's canaries again, as far as the index has their samples, and compare.

    Returns: see `views.canaries.compare`; `views` is 0 where the index has none of their samples.

    Raises:
        ViewError: they look different now.
    """
    firsts = {shard.name: shard for shard in index.shards}
    kept, now = [], []
    reader = BlockReader(paired_index(index, config.cached))
    keys: dict[str, dict[str, int]] = {}
    for canary in read_canaries(cache):
        shard = firsts.get(canary.shard)
        if shard is None:
            continue
        if canary.shard not in keys:
            rows = range(shard.first, shard.first + shard.samples)
            keys[canary.shard] = dict(zip(index.keys(rows.start, rows.stop), rows, strict=True))
        row = keys[canary.shard].get(canary.key)
        if row is not None:
            kept.append(canary)
            now.append(_canary(index, reader, config, row, canary.view, cache.size).pixels)
    reader.close()
    return compare(kept, now, tolerance)


def check_readers_canaries(
    cache: Cache,
    index: Index,
    config: ViewsConfig,
    tolerance: CanaryTolerance,
    *,
    required: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """As `check_canaries`, for an index that may be any part of the cache: where nothing can be compared, log it.

    Args:
        cache, index, config, tolerance: as there.
        required: whether the user set `tolerance`.
        log: gets a remark, if no canary is of the index's samples.

    Raises:
        ViewError: they look different now, or `tolerance` was set and nothing can be compared.
    """
    report = check_canaries(cache, index, config, tolerance)
    if not report["views"]:
        kept = read_canaries(cache)
        what = f"none of the cache's {len(kept)} canaries is of a sample of this index"
        names = sorted({canary.shard for canary in kept})
        some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        if required:
            raise ViewError(
                f"pixels can't be compared: {what}",
                where=index.path,
                allowed=f"an index with one of the shards {some}",
                do="Index one of them too; without --canary-tolerance (loader.canary_tolerance) pixels stay unchecked",
            )
        log(f"PIXELS UNCHECKED: {what}; check them with an index of one of the shards {some}")
    return report


def _canary(index: Index, reader: BlockReader, config: ViewsConfig, row: int, view: View, size: int) -> Canary:
    with ThreadPoolExecutor(1) as pool:
        pixels = render_rows(reader, config.cached, range(row, row + 1), [view], size, pool).pixels[0, 0]
    return Canary(index.shard_of(row).name, index.key(row), view, pixels)
