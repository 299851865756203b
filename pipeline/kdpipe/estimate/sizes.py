"""Bytes of a sample's targets in each candidate encoding, written as a cache writes them, and what they lose by it."""

import functools
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from kdpipe.cache import ArrayReader, Cache, Segment, Store, add_segment, commit_task, create
from kdpipe.cache.layout import padded_rows
from kdpipe.caching.identity import scratch_identity
from kdpipe.estimate.candidates import with_feature
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.targets import Calibration, Encoding, Quality
from kdpipe.targets.quality import quality
from kdpipe.views.canaries import Canary

# Parts of the sample that every candidate is measured on.
_PARTS = 8
# Of the task that is written to see how long that takes; a task has a cost of its own, whatever its size.
_TASK_BYTES = 2**24
_MEANS = ("retained_mass", "encoding_loss", "pooled_error", "map_error")
_COUNTS = ("views", "labelled", "top1", "top5")

Fields = dict[str, np.ndarray]


@dataclass(frozen=True)
class CandidateSize:
    """An encoding's cost and worth: bytes of a row's view, without the arrays' indexes of chunks."""

    encoding: Encoding
    bytes: Estimate
    quality: Quality

    def losses(self) -> dict[str, float | None]:
        """Means of what is lost; None for what isn't stored, and where a value is too large for its dtype."""
        means = {n: x for n, x in self.quality.means().items() if n in _MEANS}
        return {n: x if x is not None and math.isfinite(x) else None for n, x in means.items()}


@dataclass(frozen=True)
class Writing:
    """What it takes to write and read tasks in a local temporary folder.

    Attributes:
        seconds: of a task that has so many `rows` in so many `views`.
        read: rows and views a second, in blocks.
        store_files: of a cache, without those of its segments.
        segment_files: of a segment, without one a field and those of its tasks.
    """

    seconds: float
    rows: int
    views: int
    read: float
    store_files: int
    segment_files: int


class Sizes:
    """Encodes a sample's outputs, each field once, however many candidates have it.

    Args:
        sample: the teacher's outputs.
        block: samples in a block.
        calibration: of the map, with the components of the largest rank that will be measured.
    """

    def __init__(self, sample: Sequence[SampledOutputs], block: int, calibration: Calibration | None = None) -> None:
        self._sample, self._block, self._calibration = sample[:_PARTS], block, calibration
        self._alone = functools.cache(self._measured)

    def of(self, encoding: Encoding) -> CandidateSize:
        """Encoded and written in the cache's own layout: the sum of its logits and its features."""
        nothing = replace(encoding, kind="none", k=0, dtype="float16", pooled=None, map=None)
        logits = [replace(encoding, pooled=None, map=None)] if encoding.kind != "none" else []
        size, lost = Estimate.exactly(0), Quality()
        for alone in (*logits, *(with_feature(nothing, feature) for feature in encoding.features)):
            more, found = self._alone(alone)
            size += more
            lost.add(replace(found, **dict.fromkeys(_COUNTS, 0)) if lost.views else found)
        return CandidateSize(encoding, size, lost)

    def calibration_of(self, encoding: Encoding) -> Calibration | None:
        """The calibration of an encoding's map, with as many components as that has."""
        if self._calibration is None or encoding.map is None:
            return None
        components, rank = self._calibration.components, encoding.map.rank
        return replace(self._calibration, components=None if components is None or rank is None else components[:rank])

    def encoded(self, encoding: Encoding) -> tuple[list[Fields], Quality]:
        """Arrays (views, rows, ...) by field of parts as large as blocks, where the sample has as many rows."""
        total, calibration = Quality(), self.calibration_of(encoding)
        parts: list[Fields] = []
        for part in self._sample:
            fields = []
            for place, labels in enumerate(part.labels):
                output = part.output(place)
                with np.errstate(all="ignore"):  # a value that is too large for its dtype is in the quality
                    fields.append(encoding.encode(output, labels, calibration))
                total.add(quality(output, labels, encoding, fields[-1], calibration))
            parts.append({name: np.stack([f[name] for f in fields]) for name in fields[0]})
        # A chunk has bytes of its own, which would count too much in small parts of blocks.
        together = max(1, self._block // max(len(part.rows) for part in self._sample))
        groups = [parts[i : i + together] for i in range(0, len(parts), together)]
        return [_joined(group) for group in groups], total

    def _measured(self, encoding: Encoding) -> tuple[Estimate, Quality]:
        parts, total = self.encoded(encoding)
        segment = Segment(0, encoding, tuple(range(len(self._sample[0].views))), {})
        rows = [next(iter(fields.values())).shape[1] for fields in parts]
        with _scratch(rows, self._block, encoding.num_classes) as cache:
            add_segment(cache, segment)
            padded = padded_rows(cache.shards, self._block)
            sizes = []
            for place, fields in enumerate(parts):
                record = commit_task(cache, segment, place, fields, Quality())
                stored = sum(f["bytes"] for f in record["files"].values())
                sizes.append((stored - index_bytes(segment, padded, self._block)) / (rows[place] * len(segment.views)))
        return Estimate.of(sizes), total


def index_bytes(segment: Segment, rows: int, block: int) -> int:
    """Bytes of the chunk indexes of a task's files, one a field: they grow with padded rows, not with samples."""
    chunks = [len(segment.views) * (rows // segment.rows_a_chunk(f.name, block)) for f in segment.encoding.fields()]
    return sum(16 * number + 4 for number in chunks)


def measure_writing(encoding: Encoding, sizes: Sizes, block: int, rows: int, views: int) -> Writing:
    """Write the sample, repeated, as a task of so many rows and views, or a smaller one, and read it back."""
    rows = max(1, min(rows, _TASK_BYTES // encoding.nbytes))
    views = max(1, min(views, _TASK_BYTES // (encoding.nbytes * rows)))
    sample = _joined(sizes.encoded(encoding)[0])
    fields = {name: np.resize(x, (views, rows, *x.shape[2:])) for name, x in sample.items()}
    segment = Segment(0, encoding, tuple(range(views)), {})
    for _ in range(2):  # what the first loads and allocates is no part of a task's cost
        with _scratch([rows], block, encoding.num_classes) as cache:
            before = len(cache.store.files())
            add_segment(cache, segment)
            between = len(cache.store.files())
            start = time.perf_counter()
            commit_task(cache, segment, 0, fields, Quality())
            seconds = time.perf_counter() - start
            read = _reading(cache, segment, rows, block)
    # The folder of all segments has one file of its own; provenance comes with the first task.
    return Writing(seconds, rows, views, read, before + 2, between - before - 1 - len(encoding.fields()))


def _joined(parts: Sequence[Fields]) -> Fields:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _reading(cache: Cache, segment: Segment, samples: int, block: int) -> float:
    arrays, views = ArrayReader(cache), segment.views
    start = time.perf_counter()
    for view in views:
        for first in range(0, samples, block):
            arrays.read(segment, "0", view, first, min(first + block, samples))
    return samples * len(views) / max(time.perf_counter() - start, 1e-9)


@contextmanager
def _scratch(samples: list[int], block: int, num_classes: int) -> Iterator[Cache]:
    """A cache of no real identity in a temporary folder."""
    canary = Canary("0", "0", 0, np.ones((1, 1, 3), np.uint8))
    with tempfile.TemporaryDirectory(prefix="kdpipe-plan-") as folder:
        yield create(Store(f"{folder}/cache"), scratch_identity(samples, block, num_classes), [canary])
