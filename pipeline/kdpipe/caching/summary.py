"""A run of cache-teacher in numbers."""

from typing import Any

from kdpipe._util.redact import redact
from kdpipe.cache import Cache
from kdpipe.cache.layout import describe
from kdpipe.caching.poor_teacher import after_run
from kdpipe.caching.run import CachingReport
from kdpipe.targets import Encoding, Quality
from kdpipe.teacher import TeacherConfig
from kdpipe.views import View


def summarise(
    cache: Cache, report: CachingReport, encoding: Encoding, wanted: list[View], teacher: TeacherConfig
) -> dict[str, Any]:
    """What a run did, and what the cache now holds in the segments of the wanted views; JSON-able."""
    quality, size = Quality(), 0
    for segment in cache.segments:
        if segment.encoding == encoding and set(segment.views) & set(wanted):
            quality.add(cache.quality(segment))
            size += cache.bytes(segment)
    means = quality.means()
    return {
        "cache": redact(cache.store.url),
        "cached": describe(cache.views()),
        "input_size": cache.size,
        "tasks": report.tasks,
        "skipped": report.skipped,
        **means,
        "remarks": [*report.remarks, *after_run(means, quality.labelled, teacher, encoding.num_classes)],
        "encoding": encoding.name,
        "calibration": _calibration(cache, encoding),
        "parts": list(cache.parts),
        "bytes": size,
        "bytes_per_view": size / max(1, quality.views),
        "seconds": report.seconds,
        "views_per_second": report.quality.views / report.seconds if report.tasks else None,
        "root": cache.root_digest(),
    }


def _calibration(cache: Cache, encoding: Encoding) -> dict[str, Any] | None:
    """Samples to which the map's calibration was fitted, and the share of the variance that its basis holds."""
    if encoding.map is None or encoding.map.calibration is None:
        return None
    return {"part": encoding.map.calibration, **cache.parts[encoding.map.calibration]["about"]}
