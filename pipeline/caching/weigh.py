"""What a sample's targets weigh in each encoding: written as a cache writes them, and what they lose by it."""

import math
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache import ArrayReader, Cache, Segment, Store, add_segment, commit_task, create
from pipeline.cache.layout import padded_rows
from pipeline.caching.estimate import Estimate
from pipeline.caching.sample import Answered
from pipeline.targets import Encoding, Quality, quality
from pipeline.teacher import TeacherOutput
from pipeline.views import View
from pipeline.views.canaries import Canary

KS = (1, 5, 10, 16, 32, 64, 100)


@dataclass(frozen=True)
class Weight:
    """An encoding's cost and worth.

    Attributes:
        numbered, evaluation: bytes of a row's view, without the arrays' indexes of chunks.
        quality: of numbered and evaluation views; None for none.
    """

    encoding: Encoding
    numbered: Estimate
    evaluation: Estimate
    quality: tuple[Quality | None, Quality | None]


@dataclass(frozen=True)
class Writing:
    """What it takes to write and read tasks in a local temporary folder.

    Attributes:
        task: seconds of a task, whatever its size.
        byte: seconds of an uncompressed byte.
        read: rows and views a second that come back, in blocks.
        store_files: of a cache, beside those of its segments.
        segment_files: of a segment, beside one a field and those of its tasks.
    """

    task: float
    byte: float
    read: float
    store_files: int
    segment_files: int


def encodings(chosen: Encoding) -> list[Encoding]:
    """The one asked for and what it might be instead, smallest k first, dense last."""
    classes = chosen.num_classes
    ks = {k for k in KS if k < classes} | ({chosen.k} if chosen.kind == "topk" else set())
    dtype = chosen.dtype if chosen.kind == "topk" else "float16"
    top = [Encoding("topk", k, dtype, classes) for k in sorted(ks)]
    return [*top, *(Encoding("dense", classes, d, classes) for d in ("float16", "float32"))]


def weigh(encoding: Encoding, sample: Sequence[Answered], block: int, seconds: float) -> Weight:
    """Encode and compress a sample in the cache's own layout, in memory; two parts of it, and more in time."""
    found: list[tuple[Estimate, Quality | None]] = []
    for numbered in (True, False):
        views = tuple(v for v in sample[0].views if isinstance(v, int) is numbered)
        found.append(_weigh(encoding, sample, views, block, seconds / 2) if views else (Estimate.exactly(0), None))
    (own, said), (others, of_others) = found
    return Weight(encoding, own, others, (said, of_others))


def _weigh(
    encoding: Encoding, sample: Sequence[Answered], views: tuple[View, ...], block: int, seconds: float
) -> tuple[Estimate, Quality]:
    """Bytes of a row's view, and what is lost."""
    began, total = time.perf_counter(), Quality()
    parts: list[dict[str, np.ndarray]] = []
    for part in sample:
        if len(parts) >= 2 and time.perf_counter() - began > seconds:
            break
        fields, said = _encode(encoding, part, views)
        parts.append(fields)
        total.add(said)
    rows = [len(part.rows) for part in sample[: len(parts)]]
    sizes = _stored(Segment(0, encoding, views, {}), parts, rows, block)
    each = Estimate.of_mean([size / n for size, n in zip(sizes, rows, strict=True)])
    a_row = sum(sizes) / sum(rows)
    if len(parts) > 1 and max(rows) <= block / 2:
        # A chunk has bytes of its own, which count too much in small parts of blocks: two sizes tell them.
        some = parts[: block // max(rows)]
        joined = {name: np.concatenate([p[name] for p in some], axis=1) for name in parts[0]}
        small, large = sum(rows) / len(rows), sum(rows[: len(some)])
        [size] = _stored(Segment(0, encoding, views, {}), [joined], [large], block)
        slope = (size - sum(sizes) / len(sizes)) / (large - small)
        own = max(0.0, sum(sizes) / len(sizes) - slope * small)
        a_row = min(a_row, slope + own / block)
    return each * (a_row / each.mid / len(views)), total


def _stored(segment: Segment, parts: list[dict[str, np.ndarray]], rows: list[int], block: int) -> list[int]:
    """Bytes of each part written as a task, without its indexes of chunks."""
    found = []
    with _scratch(f"memory://kdpipe-plan-{uuid.uuid4().hex}", rows, block) as cache:
        add_segment(cache, segment)
        padded = padded_rows(cache.shards, block)
        for place, fields in enumerate(parts):
            record = commit_task(cache, segment, place, fields, Quality())
            size = sum(f["bytes"] for f in record["files"].values())
            found.append(size - index_bytes(segment, len(segment.views), padded, block))
    return found


def index_bytes(segment: Segment, views: int, rows: int, block: int) -> int:
    """Bytes of the chunk indexes of a task's files, one a field: they grow with padded rows, not with samples."""
    return sum(16 * views * (rows // segment.rows_a_chunk(f.name, block)) + 4 for f in segment.encoding.fields())


def measure_writing(encoding: Encoding, sample: Sequence[Answered], block: int) -> Writing:
    """Write the sample as a task of one block and as a task of all, on disk, and read it back."""
    views = tuple(range(len(sample[0].views)))
    parts = [_encode(encoding, part, part.views)[0] for part in sample]
    whole = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    with tempfile.TemporaryDirectory(prefix="kdpipe-plan-") as folder:
        took, rows = [], []
        # The first comes twice: what it loads and allocates once is no part of a task's cost.
        for number, fields in enumerate([parts[0], parts[0], whole]):
            samples = next(iter(fields.values())).shape[1]
            with _scratch(str(Path(folder) / str(number)), [samples], block) as cache:
                before = len(cache.store.files())
                segment = Segment(0, encoding, views, {})
                add_segment(cache, segment)
                between = len(cache.store.files())
                start = time.perf_counter()
                commit_task(cache, segment, 0, fields, Quality())
                took.append(time.perf_counter() - start)
                rows.append(padded_rows(cache.shards, block))
                read = _reading(cache, segment, samples, block)
    bytes_of = [n * len(views) * encoding.nbytes for n in rows]
    byte = max(0.0, took[2] - took[1]) / (bytes_of[2] - bytes_of[1]) if bytes_of[2] > bytes_of[1] else 0.0
    # The folder of all segments has one file of its own; provenance comes with the first task.
    task = max(0.0, took[1] - byte * bytes_of[1])
    own = between - before - 1 - len(encoding.fields())
    return Writing(task, byte, read, before + 2, own)


def loss(weight: Weight, numbered: int, evaluation: int) -> tuple[float | None, float | None]:
    """Retained mass and mean encoding loss (nats) over so many numbered and evaluation views."""
    found = []
    for name in ("retained_mass", "kl"):
        parts = [(n, q) for n, q in zip((numbered, evaluation), weight.quality, strict=True) if q is not None and n]
        value = sum(n * getattr(q, name) / q.views for n, q in parts) / sum(n for n, _ in parts)
        found.append(value if math.isfinite(value) else None)
    return found[0], found[1]


def _encode(encoding: Encoding, part: Answered, views: Sequence[View]) -> tuple[dict[str, np.ndarray], Quality]:
    places = [part.views.index(v) for v in views]
    total, fields = Quality(), []
    for place in places:
        output, labels = TeacherOutput(part.logits[place]), part.labels[place]
        with np.errstate(all="ignore"):  # logits too large for a dtype: the loss says so
            encoded = encoding.encode(output, labels)
        total.add(quality(output, labels, encoding, encoded))
        fields.append(encoded)
    return {name: np.stack([f[name] for f in fields]) for name in fields[0]}, total


def _reading(cache: Cache, segment: Segment, samples: int, block: int) -> float:
    arrays, views = ArrayReader(cache), segment.views
    start = time.perf_counter()
    for view in views:
        for first in range(0, samples, block):
            arrays.read(segment, "0", view, first, min(first + block, samples))
    return samples * len(views) / max(time.perf_counter() - start, 1e-9)


@contextmanager
def _scratch(url: str, samples: list[int], block: int) -> Iterator[Cache]:
    """A cache of no real identity, deleted afterwards."""
    shards = [{"name": str(i), "samples": n} for i, n in enumerate(samples)]
    identity: dict[str, Any] = {"block_size": block, "shards": shards}
    store = Store(url)
    try:
        yield create(store, identity, [Canary("0", "0", 0, np.ones((1, 1, 3), np.uint8))])
    finally:
        for name in store.files():
            store.remove(name)
