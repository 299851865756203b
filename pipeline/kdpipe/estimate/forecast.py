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
from kdpipe.estimate.sizes import CandidateSize, index_bytes, loss
from kdpipe.shards import Index
from kdpipe.targets import Encoding, Quality
from kdpipe.views import View


def forecast(
    index: Index,
    measured: SampleMeasurements,
    chosen: Encoding,
    views: Sequence[View],
    machines: Sequence[int],
    loading: float,
) -> dict[str, Any]:
    """What `cache_views` would make, and how long it would take.

    Args:
        index, views: as measured.
        measured: see `measure`.
        chosen: the encoding whose time is forecast; the others' bytes are listed beside its own.
        machines: for each of these numbers of machines, each with one worker, a device and render threads as here.
        loading: seconds that the teacher took to load.

    Returns:
        JSON-able; ranges are `low`, `mid`, `high`. Bytes are those of the arrays, `part_bytes` what is stored once
        beside them; seconds are of the clock.
        `seconds_alone` is what each part takes by itself, of which rendering hides behind the teacher or the
        teacher behind rendering; `binds` is the longest of them.
    """
    throughput, startup, alone = measured.throughput, loading + measured.startup, _alone(index, measured, chosen, views)
    tasks = _tasks(index, measured, chosen, views)
    count = len(index) * len(views)
    return {
        "samples": len(index),
        "views": count,
        "tasks": len(tasks),
        "encodings": [
            _encoding(index, measured, w, views) | {"chosen": w.encoding == chosen} for w in measured.weights
        ],
        "part_bytes": sum(measured.part_bytes.values()) + _calibration_bytes(chosen),
        "startup_seconds": startup,
        "device_seconds": (throughput.forward * (alone["teacher"] / max(throughput.forward.mid, 1e-12))).json(),
        "seconds_alone": alone,
        "binds": max(alone, key=alone.__getitem__),
        "views_per_second": Estimate.exactly(count).over(throughput.spread * sum(tasks)).json(),
        "read_bytes_per_second": throughput.read,
        "machines": [
            {"machines": n, "seconds": (throughput.spread * _makespan(tasks, n) + startup).json()} for n in machines
        ],
    }


def sampled(index: Index, measured: SampleMeasurements) -> dict[str, Any]:
    """How much was looked at, and how good the teacher was there."""
    sample = measured.sample
    rows, means = sum(len(a.rows) for a in sample), quality_of(measured, measured.weights[0].encoding).means()
    return {
        "samples": rows,
        "share": rows / len(index),
        "blocks": len({index.block_of(a.rows.start) for a in sample}),
        "views": len(sample[0].views),
        "seconds": measured.seconds,
        **{name: means[name] for name in ("teacher_top1", "teacher_top5")},
    }


def quality_of(measured: SampleMeasurements, encoding: Encoding) -> Quality:
    """How good the teacher was on the sample, and what this encoding, one of those measured, loses."""
    total = Quality()
    for part in next(weight for weight in measured.weights if weight.encoding == encoding).quality:
        total.add(part or Quality())
    return total


def _alone(index: Index, measured: SampleMeasurements, encoding: Encoding, views: Sequence[View]) -> dict[str, float]:
    """Seconds of each part of all the work."""
    throughput, rows = measured.throughput, np.diff(index.block_first)
    segments = _segments(index, encoding, views)
    return {
        "teacher": len(views) * float((-(-rows // throughput.batch)).sum()) * throughput.forward.mid,
        "rendering": sum(
            float(throughput.rendering(rows, g).sum()) for s in segments for g in _groups(s, throughput.group)
        ),
        "encoding": len(views) * len(index) * throughput.encode,
        "writing": len(index.shards) * sum(_writing(index, measured, s) for s in segments),
    }


def _tasks(index: Index, measured: SampleMeasurements, encoding: Encoding, views: Sequence[View]) -> list[float]:
    """Seconds of every task."""
    throughput, rows, found = measured.throughput, np.diff(index.block_first), []
    for segment in _segments(index, encoding, views):
        groups = _groups(segment, throughput.group)
        steps = np.add.reduce([throughput.steps(rows, g) for g in groups])
        by_shard = np.bincount(index.block_shard, steps, len(index.shards))
        # Nothing hides the first rendering of a task nor its last answers.
        whole, views_then = np.full(1, index.block_size), groups[-1]
        ends = throughput.rendering(whole, views_then) + throughput.outputs(whole, views_then)
        ends = np.maximum(0, ends - throughput.steps(whole, views_then))
        found += (by_shard + ends + _writing(index, measured, segment)).tolist()
    return found


def _makespan(tasks: list[float], machines: int) -> float:
    """Seconds until the last of so many machines is done, each taking the next task when it is free."""
    free = [0.0] * machines
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def _encoding(
    index: Index, measured: SampleMeasurements, weight: CandidateSize, views: Sequence[View]
) -> dict[str, Any]:
    encoding, shards, writing = weight.encoding, len(index.shards), measured.writing
    segments, fields = _segments(index, encoding, views), len(encoding.fields())
    numbered = sum(isinstance(v, int) for v in views)
    counts = numbered, len(views) - numbered
    indexes = shards * sum(index_bytes(s, len(s.views), _padded(index), index.block_size) for s in segments)
    total = (weight.numbered * counts[0] + weight.evaluation * counts[1]) * len(index) + indexes
    # Each part has a file and a record.
    parts = len(measured.part_bytes) + (encoding.map is not None)
    lost = loss(weight, *counts)
    return {
        "name": encoding.name,
        **encoding.json(),
        "bytes": total.json(),
        "bytes_per_view": (total * (1 / (len(index) * len(views)))).json(),
        "files": writing.store_files
        + 2 * parts
        + len(segments) * (writing.segment_files + fields + shards * (1 + fields)),
        "retained_mass": lost["retained_mass"],
        "encoding_loss": lost["kl"],
        "pooled_error": lost["pooled_error"],
        "map_error": lost["map_error"],
    }


def _calibration_bytes(encoding: Encoding) -> int:
    return 0 if encoding.map is None else 4 * encoding.map.shape[-1] * (2 + (encoding.map.rank or 0))


def _segments(index: Index, encoding: Encoding, views: Sequence[View]) -> list[Segment]:
    return [Segment(n, encoding, some, {}) for n, some in enumerate(portions(list(views), _padded(index), encoding))]


def _groups(segment: Segment, group: int) -> list[int]:
    """Views of each step of a block."""
    whole, rest = divmod(len(segment.views), group)
    return [group] * whole + ([rest] if rest else [])


def _padded(index: Index) -> int:
    return padded_rows([{"samples": shard.samples} for shard in index.shards], index.block_size)


def _writing(index: Index, measured: SampleMeasurements, segment: Segment) -> float:
    """Seconds to write a task."""
    size = _padded(index) * len(segment.views) * segment.encoding.nbytes
    return measured.writing.task + measured.writing.byte * size
