"""Copying a cache, or the views and shards of it that are wanted, from one place to another."""

import fnmatch
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from kdpipe._util.fingerprint import differences
from kdpipe.cache.cache import Cache, require_identity
from kdpipe.cache.commit import add_segment, put_store, read_provenance, require_empty
from kdpipe.cache.layout import PROVENANCE, STORE_RECORD, Segment, describe, in_order, runs
from kdpipe.cache.locks import alone
from kdpipe.cache.modules import copy_parts
from kdpipe.cache.sealed import seal
from kdpipe.cache.store import Store
from kdpipe.cache.tools.copy import CopySource, OnTask, read_checked, rows_of
from kdpipe.cache.tools.ls import place_of
from kdpipe.errors import CacheError, ConfigError, IdentityError
from kdpipe.views import View

# Object stores are slow and serve many requests at once; but so many bytes are in memory.
_AT_ONCE, _IN_MEMORY = 8, 4 * 2**30


@dataclass
class Transfer:
    """What `transfer` did. `absent`: wanted tasks that the source has not finished; `bytes`: of tasks and parts."""

    tasks: int = 0
    skipped: int = 0
    absent: int = 0
    bytes: int = 0


def transfer(
    source: str,
    target: str,
    views: Sequence[View] | None = None,
    shards: str | None = None,
    on_task: OnTask = lambda *_: None,
) -> tuple[Cache, Transfer]:
    """Copy finished tasks from one cache to another of the same identity, made if it isn't there.

    Records are checked when the source is opened, and each file's sha256 on its way. A segment that holds other
    views too is cut: of its files only the wanted chunks are read, each under its own checksum. Tasks that are
    there are skipped, so repeating resumes, and a wider choice adds to it.

    Args:
        source, target: folders or URLs.
        views: those wanted; None for all.
        shards: a glob that their names match; None for all. The identity keeps every shard either way.
        on_task: see `OnTask`.

    Raises:
        ConfigError: the source has no such view or shard.
        IdentityError: the target is a cache of something else; the field is named.
        CorruptionError: a file of the source has not the bytes that were committed; it is named.
        CacheError: something else is at the target, or it can't be written.
    """
    origin, store = Cache(Store(source)), Store(target)
    names = _shards(origin, shards)
    wanted = _views(origin, views)
    if place_of(source) == place_of(target):
        raise ConfigError("a cache can't be copied onto itself", where=target)
    report = Transfer()
    with alone(store):
        cache = _open(origin, store)
        pairs = pieces(origin, cache, wanted)
        # Before the segments that can't be read without them.
        report.bytes += copy_parts(origin, cache, [piece for _, piece in pairs])
        for _, piece in pairs:
            if piece not in cache.segments:
                add_segment(cache, piece)
        tasks = [(held, piece, name) for held, piece in pairs for name in names]
        missing = [task for task in tasks if (task[1].name, task[2]) not in cache.commits]
        todo = [task for task in missing if (task[0].name, task[2]) in origin.commits]
        report.skipped, report.absent = len(tasks) - len(missing), len(missing) - len(todo)
        on_task(0, len(todo))
        reader = CopySource(origin)
        largest = max((s.encoding.nbytes * len(s.views) for s, _, _ in todo), default=0) * rows_of(origin)
        with ThreadPoolExecutor(max(1, min(_AT_ONCE, _IN_MEMORY // max(1, largest)))) as pool:
            waiting = [pool.submit(reader.copy, held, name, cache, piece, digests=False) for held, piece, name in todo]
            try:
                for done in as_completed(waiting):
                    report.bytes += done.result()
                    report.tasks += 1
                    on_task(report.tasks, len(todo))
            finally:
                pool.shutdown(cancel_futures=True)
        if store.local is not None:
            store.sweep()
    return cache, report


def pieces(origin: Cache, cache: Cache, wanted: set[View]) -> list[tuple[Segment, Segment]]:
    """(segment of the origin, segment of the cache that takes all or some of its views), for the wanted views.

    Those that the cache has are filled further; what is wanted beyond them becomes new ones.

    Raises:
        IdentityError: the cache's own were made with other numerics.
        CacheError: one of the cache's own holds views of several segments of the origin.
    """
    found: list[tuple[Segment, Segment]] = []
    number = max((s.number for c in (origin, cache) for s in c.segments), default=-1) + 1
    taken = {s.number for s in cache.segments}
    for segment in origin.segments:
        views = set(segment.views)
        there = [s for s in cache.segments if s.encoding == segment.encoding and set(s.views) & views & wanted]
        # A source whose views were being dropped has some of them twice.
        there = [s for s in there if s == segment] or there
        for own in there:
            for name, ours, theirs in differences(own.numerics, segment.numerics)[:1]:
                where = f"{cache.store} segment {own.name}"
                raise IdentityError(
                    f"made with another {name} than the source", where=where, found=ours, allowed=theirs
                )
            if not set(own.views) <= views:
                raise CacheError(
                    "holds views that are in several segments of the source",
                    where=f"{cache.store} segment {own.name}",
                    found=describe(list(own.views)),
                    allowed=f"some of {describe(list(segment.views))}",
                    do="Copy to another place, and merge",
                )
        found += [(segment, own) for own in there]
        rest = in_order((views & wanted).difference(*(own.views for own in there)))
        for run in runs(rest):
            whole = run == segment.views and segment.number not in taken
            new = Segment(segment.number if whole else number, segment.encoding, run, segment.numerics)
            number += not whole
            found.append((segment, new))
    return found


def _open(origin: Cache, store: Store) -> Cache:
    """The target, made with the origin's identity and canaries if it isn't there."""
    fresh = not store.exists(STORE_RECORD)
    if fresh:
        require_empty(store, "Choose another place")
        about = {name: value for name, value in origin.record.items() if name != "files"}
        files = {name: read_checked(origin.store, name, digest) for name, digest in origin.record["files"].items()}
        put_store(store, files, about)
    cache = Cache(store)
    if not fresh:
        require_identity(store, origin.identity, cache.identity)
    before = read_provenance(store)
    new = [run for run in read_provenance(origin.store) if run not in before]
    if new:
        store.put(PROVENANCE, seal({"runs": [*before, *new]}))
    return cache


def _shards(cache: Cache, pattern: str | None) -> list[str]:
    names = [s["name"] for s in cache.shards]
    found = [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError("no shard matches", where=cache.store, found=pattern, allowed=f"{names[0]} to {names[-1]}")
    return found


def _views(cache: Cache, views: Sequence[View] | None) -> set[View]:
    held = {view for segment in cache.segments for view in segment.views}
    missing = [] if views is None else [view for view in views if view not in held]
    if missing:
        raise ConfigError(
            "no segment holds these views",
            where=cache.store,
            found=describe(missing),
            allowed=describe(in_order(held)) or "none",
        )
    return held if views is None else set(views)
