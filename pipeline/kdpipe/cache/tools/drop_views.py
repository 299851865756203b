"""Dropping views: segments are immutable, so what else a segment holds moves to a new one before it goes."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdpipe.cache.cache import Cache
from kdpipe.cache.commit import add_segment
from kdpipe.cache.layout import Segment, describe, in_order, runs
from kdpipe.cache.locks import alone
from kdpipe.cache.store import Store
from kdpipe.cache.tools.copy import CopySource, OnTask
from kdpipe.cache.tools.gc import orphans, remove_orphans, remove_records
from kdpipe.errors import ConfigError
from kdpipe.views import View


@dataclass(frozen=True)
class Drop:
    """What dropping views means for a cache.

    Attributes:
        gone: segments that go.
        kept: (segment that goes, segment that takes over a run of its other views).
        bytes: stored in what goes.
        leftovers: files of an earlier drop, or of anything else that was interrupted.
    """

    gone: list[Segment]
    kept: list[tuple[Segment, Segment]]
    bytes: int
    leftovers: list[str]


def plan_drop(cache: Cache, views: Sequence[View], encoding: str | None = None) -> Drop:
    """What would happen.

    Args:
        cache: open, and written by no process.
        views: to drop.
        encoding: name of the only encoding to drop them from; None for all.

    Raises:
        ConfigError: nothing in the cache holds them.
    """
    gone = [s for s in cache.segments if set(s.views) & set(views) and encoding in (None, s.encoding.name)]
    kept: list[tuple[Segment, Segment]] = []
    number = max((s.number for s in cache.segments), default=-1) + 1
    for segment in gone:
        for run in runs([v for v in segment.views if v not in views]):
            # Begun by a drop that was interrupted?
            there = (s for s in cache.segments if s.number > segment.number and _same(s, segment, run))
            new = next(there, None)
            if new is None:
                new, number = Segment(number, segment.encoding, run, segment.numerics), number + 1
            kept.append((segment, new))
    leftovers = list(orphans(cache))
    if not gone and not leftovers:
        held: dict[str, set[View]] = {}
        for segment in cache.segments:
            held.setdefault(segment.encoding.name, set()).update(segment.views)
        raise ConfigError(
            "no segment holds these views",
            where=cache.store,
            found=describe(list(views)) + (f" in {encoding}" if encoding else ""),
            allowed="; ".join(f"{describe(in_order(held[name]))} in {name}" for name in sorted(held)) or "none",
        )
    return Drop(gone, kept, sum(cache.bytes(s) for s in gone), leftovers)


def drop_views(
    store: Store, views: Sequence[View], encoding: str | None = None, on_task: OnTask = lambda *_: None
) -> Drop:
    """Drop views from a cache: copy what else their segments hold, then delete those, records first.

    A kill at any instant leaves a valid cache; the same call again finishes.

    Raises:
        ConfigError: nothing in the cache holds them.
        CorruptionError: what is to be kept can't be read; nothing was dropped.
        CacheError: somebody is writing to the cache.
    """
    Cache(store)  # before the lock, which would make the folder
    with alone(store):
        cache = Cache(store)
        plan = plan_drop(cache, views, encoding)
        for _, new in plan.kept:
            if new not in cache.segments:
                add_segment(cache, new)
        tasks = [
            (old, new, shard)
            for old, new in plan.kept
            for shard in cache.committed(old)
            if (new.name, shard) not in cache.commits
        ]
        on_task(0, len(tasks))
        source = CopySource(cache)
        for done, (old, new, shard) in enumerate(tasks, start=1):
            source.copy(old, shard, cache, new)
            on_task(done, len(tasks))
        remove_records(cache, [s.name for s in plan.gone])
        remove_orphans(store)
    return plan


def _same(segment: Segment, old: Segment, run: tuple[View, ...]) -> bool:
    return segment.views == run and segment.encoding == old.encoding and segment.numerics == old.numerics
