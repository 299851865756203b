"""Which calibration the map of a run gets: the cache's own, that of another cache, or one that is fitted now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.cache import Cache, Store, require_identity
from kdpipe.cache.modules import copy_part, needed, read_part_bytes, with_calibration
from kdpipe.caching.backend import Backend, CachingJob
from kdpipe.caching.modules import fitted_to
from kdpipe.errors import CacheError, ConfigError
from kdpipe.targets import Encoding
from kdpipe.views import View

# Segments, the first ones, whose views a lost calibration may have been fitted to; each try takes up to 512 views.
_TRIED = 6


@dataclass(frozen=True)
class BasisReuse:
    """A calibration to be taken from another cache."""

    cache: Cache
    name: str


def reuse_basis(url: str, identity: dict[str, Any], encoding: Encoding, views: Sequence[View]) -> BasisReuse:
    """Find the calibration of such a map, of the same shape and rank, in another cache.

    Args:
        url: the other cache. Its shards may be others; its teacher, policy of views and render size may not.
        identity: of the cache that is being made.
        encoding, views: what is to be there.

    Raises:
        ConfigError: no map is to be kept.
        IdentityError: the other cache is of something else; the field is named.
        CacheError: it has no such calibration, or has lost it.
    """
    if encoding.map is None:
        do = "Keep one with --feature-map, or leave out --calibration-from"
        raise ConfigError("there is no map to calibrate", where=f"--calibration-from {url}", do=do)
    other = Cache(Store(url))
    ours, theirs = (
        {key: one[key] for key in ("teacher", "views", "render_size")} for one in (identity, other.identity)
    )
    require_identity(other.store, ours, theirs)
    held = calibrated(other, encoding, views).map
    if held is None or held.calibration is None:
        labels = {s.encoding.map.label for s in other.segments if s.encoding.map is not None}
        raise CacheError(
            "has no calibration of such a map",
            where=other.store,
            found=", ".join(sorted(labels)) or "no map",
            allowed=f"rank {encoding.map.rank} of shape {encoding.map.shape}",
            do="Name a cache that was made with the same --feature-map-rank",
        )
    read_part_bytes(other, held.calibration)
    return BasisReuse(other, held.calibration)


def calibrated(cache: Cache, encoding: Encoding, views: Sequence[View], reuse: BasisReuse | None = None) -> Encoding:
    """The encoding with the calibration that the cache has for such a map, else with the reused one, if any.

    Segments of the same encoding can be read together: theirs comes first.

    Raises:
        CacheError: the cache has another one than the reused one.
    """
    if encoding.map is None:
        return encoding
    having: list[tuple[tuple[bool, int, int], str]] = []
    alike = encoding.map.shape, encoding.map.rank
    for segment in cache.segments:
        held = segment.encoding.map
        if held is None or held.calibration is None or (held.shape, held.rank) != alike:
            continue
        same = segment.encoding == with_calibration(encoding, held.calibration)
        having.append(((same, len(set(segment.views) & set(views)), segment.number), held.calibration))
    name = max(having)[1] if having else None
    if reuse is not None and name not in (None, reuse.name):
        raise CacheError(
            "the cache has another calibration of such a map",
            where=cache.store,
            found=name,
            allowed=f"{reuse.name} of {reuse.cache.store}",
            do="Leave out --calibration-from; or make another cache with it",
        )
    return with_calibration(encoding, name if reuse is None else reuse.name)


def have_calibration(
    backend: Backend,
    job: CachingJob,
    cache: Cache,
    encoding: Encoding,
    views: Sequence[View],
    reuse: BasisReuse | None = None,
) -> Encoding:
    """Have the calibration of an encoding's map in the cache: copied from the cache to reuse, or fitted to the views.

    One that segments name and that was lost is fitted to what it may have been fitted to, until it is that one.

    Returns:
        The encoding, which names it.

    Raises:
        CacheError: it was lost and doesn't come out as it was, or can't be written.
    """
    if encoding.map is None or encoding.map.calibration in cache.parts:
        return encoding
    lost, rank = encoding.map.calibration, encoding.map.rank
    if reuse is not None:
        copy_part(reuse.cache, cache, reuse.name)
        return encoding
    if lost is None:
        return with_calibration(encoding, backend.calibrate(job, rank, views))
    made = None
    for tried in _views_of_first_runs(cache, lost, views):
        made = backend.calibrate(job, rank, tried)
        if made == lost:
            return encoding
    raise CacheError(
        "a calibration was lost, and made again it is another one",
        where=f"{cache.store} part {lost}",
        found=made,
        do="Repeat the command with the --views that the cache was first made with; or restore the part's files from a "
        "copy, or with --calibration-from a cache that has it. Else drop the views whose map needs it, and cache them "
        "again",
    )


def _views_of_first_runs(cache: Cache, calibration: str, views: Sequence[View]) -> Iterator[tuple[View, ...]]:
    """Views that a calibration may have been fitted to, likeliest first.

    The run that fitted it made the first segments that name it; how many is not recorded; and where views were
    dropped since, only the user knows what they were.
    """
    held = [segment.views for segment in cache.segments if calibration in needed([segment])]
    counts = [*range(1, min(len(held), _TRIED) + 1), len(held)]
    yield from dict.fromkeys(
        fitted_to(fitted) for fitted in [*([view for some in held[:n] for view in some] for n in counts), views]
    )
