"""What a sample's targets weigh in each encoding: written as a cache writes them, and what they lose by it."""

import math
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdpipe.cache import ArrayReader, Cache, Segment, Store, add_segment, commit_task, create
from kdpipe.cache.layout import padded_rows
from kdpipe.caching.identity import scratch_identity
from kdpipe.estimate.candidates import keeping
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.targets import Calibration, Encoding, Quality
from kdpipe.targets.quality import quality
from kdpipe.views import View
from kdpipe.views.canaries import Canary

LOSSES = ("retained_mass", "kl", "pooled_error", "map_error")


@dataclass(frozen=True)
class CandidateSize:
    """An encoding's cost and worth.

    Attributes:
        numbered, evaluation: bytes of a row's view, without the arrays' indexes of chunks.
        quality: of numbered and evaluation views; None for none.
    """

    encoding: Encoding
    numbered: Estimate
    evaluation: Estimate
    quality: tuple[Quality | None, Quality | None]

    def __add__(self, other: "CandidateSize") -> "CandidateSize":
        """Of other fields of the same views, kept beside these; the encoding stays this one."""
        numbered, evaluation = (_joined(*pair) for pair in zip(self.quality, other.quality, strict=True))
        own, others = self.numbered + other.numbered, self.evaluation + other.evaluation
        return CandidateSize(self.encoding, own, others, (numbered, evaluation))


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


class Scales:
    """Weighs a sample's fields, each kind of them once, whatever encodings have them.

    Args:
        sample: what the teacher said.
        block: samples in a block.
        seconds: for one kind of field; two parts of the sample are weighed anyway.
        calibration: of the map, with the components of the largest rank that will be asked for.
    """

    def __init__(
        self, sample: Sequence[SampledOutputs], block: int, seconds: float, calibration: Calibration | None = None
    ) -> None:
        self._sample, self._block, self._seconds, self.calibration = sample, block, seconds, calibration
        self._known: dict[Encoding, CandidateSize] = {}

    def weigh(self, encoding: Encoding) -> CandidateSize:
        """Encode and compress in the cache's own layout, in memory; two parts of the sample, and more in time."""
        total: CandidateSize | None = None
        for alone in _alone(encoding):
            if alone not in self._known:
                self._known[alone] = self._weigh_alone(alone)
            total = self._known[alone] if total is None else total + self._known[alone]
        assert total is not None
        return replace(total, encoding=encoding)

    def of_rank(self, encoding: Encoding) -> Calibration | None:
        """The calibration of an encoding's map."""
        return cut(self.calibration, encoding)

    def _weigh_alone(self, encoding: Encoding) -> CandidateSize:
        found: list[tuple[Estimate, Quality | None]] = []
        for numbered in (True, False):
            views = tuple(v for v in self._sample[0].views if isinstance(v, int) is numbered)
            found.append(self._weigh(encoding, views) if views else (Estimate.exactly(0), None))
        (own, said), (others, of_others) = found
        return CandidateSize(encoding, own, others, (said, of_others))

    def _weigh(self, encoding: Encoding, views: tuple[View, ...]) -> tuple[Estimate, Quality]:
        """Bytes of a row's view, and what is lost."""
        began, total, block = time.perf_counter(), Quality(), self._block
        parts: list[dict[str, np.ndarray]] = []
        for part in self._sample:
            if len(parts) >= 2 and time.perf_counter() - began > self._seconds / 2:
                break
            fields, said = _encode(encoding, part, views, self.of_rank(encoding))
            parts.append(fields)
            total.add(said)
        rows = [len(part.rows) for part in self._sample[: len(parts)]]
        # A segment's views are consecutive; sizes don't depend on which they are.
        segment = Segment(0, encoding, tuple(range(len(views))), {})
        sizes = _stored(segment, parts, rows, block)
        each = Estimate.of_mean([size / n for size, n in zip(sizes, rows, strict=True)])
        a_row = sum(sizes) / sum(rows)
        if len(parts) > 1 and max(rows) <= block / 2:
            # A chunk has bytes of its own, which count too much in small parts of blocks: two sizes tell them.
            some = parts[: block // max(rows)]
            joined = {name: np.concatenate([p[name] for p in some], axis=1) for name in parts[0]}
            small, large = sum(rows) / len(rows), sum(rows[: len(some)])
            [size] = _stored(segment, [joined], [large], block)
            slope = (size - sum(sizes) / len(sizes)) / (large - small)
            own = max(0.0, sum(sizes) / len(sizes) - slope * small)
            a_row = min(a_row, slope + own / block)
        return each * (a_row / each.mid / len(views)), total


def _joined(one: Quality | None, other: Quality | None) -> Quality | None:
    """What is lost of other fields of the same views, together."""
    if one is None or other is None:
        return None
    return replace(one, **{n: v for n, v in other.json().items() if n in LOSSES})


def cut(calibration: Calibration | None, encoding: Encoding) -> Calibration | None:
    """A calibration with the components that an encoding's map has."""
    if calibration is None or encoding.map is None:
        return None
    components, rank = calibration.components, encoding.map.rank
    return replace(calibration, components=None if components is None or rank is None else components[:rank])


def _alone(encoding: Encoding) -> list[Encoding]:
    """Encodings of its logits and of each of its features."""
    nothing = replace(encoding, kind="none", k=0, dtype="float16", pooled=None, map=None)
    logits = [replace(encoding, pooled=None, map=None)] if encoding.kind != "none" else []
    return [*logits, *(keeping(nothing, feature) for feature in encoding.features)]


def _stored(segment: Segment, parts: list[dict[str, np.ndarray]], rows: list[int], block: int) -> list[int]:
    """Bytes of each part written as a task, without its indexes of chunks."""
    found = []
    with _scratch(f"memory://kdpipe-plan-{uuid.uuid4().hex}", rows, block, segment.encoding.num_classes) as cache:
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


def measure_writing(encoding: Encoding, sample: Sequence[SampledOutputs], block: int, scales: Scales) -> Writing:
    """Write the sample as a task of one block and as a task of all, on disk, and read it back."""
    views = tuple(range(len(sample[0].views)))
    parts = [_encode(encoding, part, part.views, scales.of_rank(encoding))[0] for part in sample]
    whole = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    with tempfile.TemporaryDirectory(prefix="kdpipe-plan-") as folder:
        took, rows = [], []
        # The first comes twice: what it loads and allocates once is no part of a task's cost.
        for number, fields in enumerate([parts[0], parts[0], whole]):
            samples = next(iter(fields.values())).shape[1]
            with _scratch(str(Path(folder) / str(number)), [samples], block, encoding.num_classes) as cache:
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


def loss(weight: CandidateSize, numbered: int, evaluation: int) -> dict[str, float | None]:
    """Means of LOSSES over so many numbered and evaluation views; None for what isn't kept, and what has no bound."""
    parts = [(n, q) for n, q in zip((numbered, evaluation), weight.quality, strict=True) if q is not None and n]
    found: dict[str, float | None] = {}
    for name in LOSSES:
        values = [(n, getattr(q, name) / q.views) for n, q in parts if getattr(q, name) is not None]
        value = sum(n * v for n, v in values) / sum(n for n, _ in values) if values else math.inf
        found[name] = value if math.isfinite(value) else None
    return found


def _encode(
    encoding: Encoding, part: SampledOutputs, views: Sequence[View], calibration: Calibration | None
) -> tuple[dict[str, np.ndarray], Quality]:
    places = [part.views.index(v) for v in views]
    total, fields = Quality(), []
    for place in places:
        output, labels = part.output(place), part.labels[place]
        with np.errstate(all="ignore"):  # what is too large for a dtype: the loss says so
            encoded = encoding.encode(output, labels, calibration)
        total.add(quality(output, labels, encoding, encoded, calibration))
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
def _scratch(url: str, samples: list[int], block: int, num_classes: int) -> Iterator[Cache]:
    """A cache of no real identity, deleted afterwards."""
    store, identity = Store(url), scratch_identity(samples, block, num_classes)
    try:
        yield create(store, identity, [Canary("0", "0", 0, np.ones((1, 1, 3), np.uint8))])
    finally:
        for name in store.files():
            store.remove(name)
