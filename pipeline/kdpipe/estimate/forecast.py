"""From a sample to the whole: bytes, files and time of a cache that is not made yet."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdpipe.cache import Segment
from kdpipe.cache.layout import padded_rows
from kdpipe.caching.segments import portions
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.measure import SampleMeasurements
from kdpipe.estimate.sizes import CandidateSize, index_bytes
from kdpipe.shards import Index
from kdpipe.targets import Encoding
from kdpipe.views import View


def forecast(
    index: Index, measured: SampleMeasurements, views: Sequence[View], machines: Sequence[int], loading: float
) -> dict[str, Any]:
    """What `cache_views` would make, and how long it would take.

    Args:
        index, views: as measured.
        measured: see `measure`.
        machines: for each of these numbers of machines, each with one worker, a device and render threads as here.
        loading: seconds that the teacher took to load.

    Returns:
        JSON-able; ranges are `low`, `mid`, `high`. Bytes are those of the arrays, `part_bytes` what is stored once
        beside them; seconds are of the clock.
        `seconds_alone` is what each part takes by itself, of which rendering hides behind the teacher or the
        teacher behind rendering; `binds` is the longest of them.
    """
    rows, encoding, speed = np.diff(index.block_first), measured.encoding, measured.throughput
    count, segments = len(index) * len(views), _segments(index, encoding, views)
    # Seconds of each task: its batches, the first rendering, which nothing hides, and writing.
    batches = np.bincount(index.block_shard, -(-rows // speed.batch), len(index.shards))
    first = speed.render * speed.views * -(-index.block_size // speed.batch)
    writing = [_writing(index, measured, segment) for segment in segments]
    tasks = np.concatenate(
        [batches * len(s.views) * speed.whole.mid + first + w for s, w in zip(segments, writing, strict=True)]
    ).tolist()
    whole, spread = float(batches.sum()) * len(views), speed.whole * (1 / speed.whole.mid)
    alone = {
        "teacher": whole * speed.forward.mid,
        "rendering": whole * speed.render,
        "encoding": whole * speed.encode,
        "writing": len(index.shards) * sum(writing),
    }
    startup = loading + measured.startup
    calibration = 0 if encoding.map is None else 4 * encoding.map.shape[-1] * (2 + (encoding.map.rank or 0))
    return {
        "samples": len(index),
        "views": count,
        "tasks": len(tasks),
        "encodings": [
            _encoding(index, measured, c, views) | {"chosen": c.encoding == encoding} for c in measured.candidates
        ],
        "part_bytes": sum(measured.part_bytes.values()) + calibration,
        "startup_seconds": startup,
        "device_seconds": (speed.forward * whole).json(),
        "seconds_alone": alone,
        "binds": max(alone, key=alone.__getitem__),
        "views_per_second": Estimate.exactly(count).over(spread * sum(tasks)).json(),
        "machines": [{"machines": n, "seconds": (spread * _makespan(tasks, n) + startup).json()} for n in machines],
    }


def sampled(index: Index, measured: SampleMeasurements) -> dict[str, Any]:
    """How large the sample is, and how good the teacher is on it."""
    sample, means = measured.sample, measured.candidates[0].quality.means()
    rows = sum(len(part.rows) for part in sample)
    return {
        "samples": rows,
        "share": rows / len(index),
        "blocks": len({index.block_of(part.rows.start) for part in sample}),
        "views": len(sample[0].views),
        "seconds": measured.seconds,
        **{name: means[name] for name in ("teacher_top1", "teacher_top5")},
    }


def _makespan(tasks: list[float], machines: int) -> float:
    """Seconds until the last of so many machines is done, each taking the next task when it is free."""
    free = [0.0] * machines
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def _encoding(
    index: Index, measured: SampleMeasurements, candidate: CandidateSize, views: Sequence[View]
) -> dict[str, Any]:
    encoding, shards, writing = candidate.encoding, len(index.shards), measured.writing
    segments, fields = _segments(index, encoding, views), len(encoding.fields())
    indexes = shards * sum(index_bytes(s, _padded(index), index.block_size) for s in segments)
    total = candidate.bytes * (len(index) * len(views)) + indexes
    # Each part has a file and a record.
    parts = len(measured.part_bytes) + (encoding.map is not None)
    return {
        "name": encoding.name,
        **encoding.json(),
        "bytes": total.json(),
        "bytes_per_view": (total * (1 / (len(index) * len(views)))).json(),
        "files": writing.store_files
        + 2 * parts
        + len(segments) * (writing.segment_files + fields + shards * (1 + fields)),
        **candidate.losses(),
    }


def _segments(index: Index, encoding: Encoding, views: Sequence[View]) -> list[Segment]:
    return [Segment(n, encoding, some, {}) for n, some in enumerate(portions(list(views), _padded(index), encoding))]


def _padded(index: Index) -> int:
    return padded_rows([{"samples": shard.samples} for shard in index.shards], index.block_size)


def _writing(index: Index, measured: SampleMeasurements, segment: Segment) -> float:
    """Seconds to write a task: as long as the sample's, or longer in proportion to its rows and views."""
    writing = measured.writing
    return writing.seconds * max(1.0, _padded(index) * len(segment.views) / (writing.rows * writing.views))
