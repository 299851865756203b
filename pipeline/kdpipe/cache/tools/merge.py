"""Merging caches that differ in their shards or in what they hold of them, and in nothing else."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kdpipe._util.fingerprint import differences
from kdpipe.cache.cache import Cache
from kdpipe.cache.commit import add_segment, create, read_canaries, read_provenance
from kdpipe.cache.layout import PROVENANCE, STORE_RECORD, Segment, runs
from kdpipe.cache.locks import alone
from kdpipe.cache.modules import copy_parts, needed, with_calibration
from kdpipe.cache.sealed import seal
from kdpipe.cache.store import Store
from kdpipe.cache.tools.copy import CopySource, OnTask, rows_of
from kdpipe.cache.tools.gc import remove_orphans
from kdpipe.cache.tools.ls import place_of
from kdpipe.errors import CacheError, ConfigError, IdentityError
from kdpipe.targets import Encoding
from kdpipe.views import View
from kdpipe.views.canaries import COUNT, Canary, spread

# Which sources hold something: (position among the sources, segment).
_Holders = list[tuple[int, Segment]]


@dataclass(frozen=True)
class Part:
    """A segment of the merged cache, and where each of its tasks comes from: (source, segment) by shard."""

    segment: Segment
    tasks: dict[str, tuple[int, Segment]]


@dataclass
class Merged:
    """What `merge` did; `bytes`: of tasks and parts."""

    tasks: int = 0
    skipped: int = 0
    bytes: int = 0


def merge(out: str, sources: Sequence[str], on_task: OnTask = lambda *_: None) -> tuple[Cache, Merged]:
    """Make one cache of several whose identities differ in their shards alone.

    The shards are the union, by name. What is there twice is taken from the first source that has it. Tasks are
    committed one by one: a kill at any instant leaves a valid cache, and the same call again finishes.

    Args:
        out: folder or URL: nothing yet, or a cache of all the shards whose segments all are in the sources too, as an
            interrupted merge leaves it.
        sources: folders or URLs of caches, whole or not.
        on_task: see `OnTask`.

    Raises:
        IdentityError: the sources differ in something else; the field is named.
        CorruptionError: a file of a source has not the bytes that were committed; it is named.
        CacheError: there is something else at `out`, or it can't be written; or see `plan_merge`.
    """
    caches = [Cache(Store(url)) for url in sources]
    store = Store(out)
    if any(place_of(store.url) == place_of(cache.store.url) for cache in caches):
        raise ConfigError("the merged cache is one of its sources", where=out, do="Choose another folder")
    identity = merged_identity(caches)
    parts = plan_merge(caches, identity["shards"])
    canaries, report = spread_canaries(caches), Merged()
    with alone(store):
        cache = _open(store, identity, canaries, parts)
        # Before the segments that can't be read without them.
        for source in caches:
            own = needed(source.segments)
            report.bytes += copy_parts(source, cache, [p.segment for p in parts if needed([p.segment]) <= own])
        for part in parts:
            if part.segment not in cache.segments:
                add_segment(cache, part.segment)
        tasks = [(part.segment, shard, at) for part in parts for shard, at in part.tasks.items()]
        todo = [task for task in tasks if (task[0].name, task[1]) not in cache.commits]
        report.skipped = len(tasks) - len(todo)
        if todo or not store.exists(PROVENANCE):
            store.put(PROVENANCE, seal({"runs": _provenance(store, caches)}))
        on_task(0, len(todo))
        readers = [CopySource(c) for c in caches]
        for segment, shard, (i, held) in todo:
            report.bytes += readers[i].copy(held, shard, cache, segment)
            report.tasks += 1
            on_task(report.tasks, len(todo))
        if store.local is not None:  # elsewhere a leftover can't be distinguished from what is being written
            remove_orphans(store)
    return cache, report


def merged_identity(caches: Sequence[Cache]) -> dict[str, Any]:
    """The identity of all caches together: their own, with all their shards by name.

    Raises:
        IdentityError: they differ in anything else.
    """
    first = caches[0]
    shards: dict[str, tuple[dict[str, Any], Cache]] = {}
    for cache in caches:
        for shard in cache.shards:
            known, origin = shards.setdefault(shard["name"], (shard, cache))
            _require_equal(origin, cache, known, shard, f"shards.{shard['name']}.")
        ours = {**first.identity, "shards": []}
        _require_equal(first, cache, ours, {**cache.identity, "shards": []})
    return {**first.identity, "shards": [shards[name][0] for name in sorted(shards)]}


def _require_equal(one: Cache, two: Cache, ours: Any, theirs: Any, prefix: str = "") -> None:
    for field, a, b in differences(ours, theirs)[:1]:
        raise IdentityError(
            f"made with another {prefix}{field} than {one.store}",
            where=two.store,
            found=b,
            allowed=a,
            do="Only caches that differ in their shards, views or encodings can be merged",
        )


def plan_merge(caches: Sequence[Cache], shards: Sequence[dict[str, Any]]) -> list[Part]:
    """The segments of the merged cache, in the order in which the sources have them.

    A segment is the longest run of views that the same segments of the sources hold: where one source has views
    0:4 in one segment and another 0:2 and 2:4, the merged cache has two.

    Raises:
        IdentityError: a view was made with other numerics in one source than in another, or on another basis.
        CacheError: sources hold different values of one task.
    """
    merged = merged_encodings(caches)
    holders: dict[tuple[Encoding, View], _Holders] = {}
    for i, cache in enumerate(caches):
        for segment in cache.segments:
            for view in segment.views:
                held = holders.setdefault((merged[segment.encoding], view), [])
                for j, other in held[:1]:
                    what = f"numerics of view {view} ({segment.encoding.name}): "
                    _require_equal(caches[j], cache, other.numerics, segment.numerics, what)
                held.append((i, segment))
    parts: list[Part] = []
    done: set[tuple[Encoding, View]] = set()
    for cache in caches:
        for segment in cache.segments:
            encoding = merged[segment.encoding]
            groups: dict[tuple[tuple[int, str], ...], list[View]] = {}
            for view in segment.views:
                if (encoding, view) not in done:
                    held = holders[encoding, view]
                    groups.setdefault(tuple((i, s.name) for i, s in held), []).append(view)
            cut = [run for group in groups.values() for run in runs(group)]
            for views in sorted(cut, key=lambda run: segment.views.index(run[0])):
                new = Segment(len(parts), encoding, views, segment.numerics)
                parts.append(Part(new, _tasks(caches, holders[encoding, views[0]], shards)))
                done |= {(encoding, view) for view in views}
    return parts


def merged_encodings(caches: Sequence[Cache]) -> dict[Encoding, Encoding]:
    """Each encoding of the sources, and what it is in the merged cache.

    Where a map lies in its own channels, no stored value depends on its calibration, which is statistics beside it:
    all maps of one shape get that of the first source.

    Raises:
        IdentityError: sources hold one encoding on two bases. No segment could have the shards of both.
    """
    found: dict[Encoding, Encoding] = {}
    statistics: dict[tuple[int, ...], str | None] = {}
    bases: dict[Encoding, tuple[str | None, Cache]] = {}
    for cache in caches:
        for encoding in (segment.encoding for segment in cache.segments):
            if encoding.map is None:
                found[encoding] = encoding
                continue
            name, shape = encoding.map.calibration, encoding.map.shape
            if encoding.map.rank is None:
                found[encoding] = with_calibration(encoding, statistics.setdefault(shape, name))
                continue
            known, origin = bases.setdefault(with_calibration(encoding, None), (name, cache))
            if name != known:
                raise IdentityError(
                    f"its {encoding.name} lies on another basis than that of {origin.store}",
                    where=cache.store,
                    found=name,
                    allowed=known,
                    do=f"Cache it again with kdpipe cache-teacher --calibration-from {origin.store}, then merge",
                )
            found[encoding] = encoding
    return found


def _tasks(caches: Sequence[Cache], held: _Holders, shards: Sequence[dict[str, Any]]) -> dict[str, tuple[int, Segment]]:
    """By shard, the first source that has finished the task."""
    tasks = {}
    for name in (s["name"] for s in shards):
        having = [(i, segment) for i, segment in held if (segment.name, name) in caches[i].commits]
        if having:
            tasks[name] = having[0]
        for i, segment in having[1:]:
            first, same = having[0], segment.views == having[0][1].views
            comparable = same and rows_of(caches[i]) == rows_of(caches[first[0]])
            if comparable and _digests(caches[i], segment, name) != _digests(caches[first[0]], first[1], name):
                raise CacheError(
                    f"holds other values of {segment.encoding.name} of {name} than {caches[first[0]].store}",
                    where=f"{caches[i].store} segment {segment.name}",
                    do="Merge only one of them",
                )
    return tasks


def _digests(cache: Cache, segment: Segment, shard: str) -> list[str]:
    """Of the task's files, in the order of its fields."""
    position = next(i for i, s in enumerate(cache.shards) if s["name"] == shard)
    files = cache.commits[segment.name, shard]["files"]
    return [files[segment.chunk(field.name, position)]["sha256"] for field in segment.encoding.fields()]


def spread_canaries(caches: Sequence[Cache]) -> list[Canary]:
    """Of all canaries, by shard and in the sources' order, at most COUNT: the first, the last and those between."""
    found: dict[tuple[str, str, View], Canary] = {}
    for cache in caches:
        for canary in read_canaries(cache):
            found.setdefault((canary.shard, canary.key, canary.view), canary)
    ordered = sorted(found.values(), key=lambda canary: canary.shard)
    return [ordered[i] for i in spread(len(ordered), COUNT)]


def _open(store: Store, identity: dict[str, Any], canaries: list[Canary], parts: Sequence[Part]) -> Cache:
    if not store.exists(STORE_RECORD):
        return create(store, identity, canaries)
    cache = Cache(store)
    planned = [part.segment for part in parts]
    extra = [s.name for s in cache.segments if s not in planned]
    if cache.identity != identity or extra:
        raise CacheError(
            "another cache than the merged one is there",
            where=store,
            found=extra[0] if extra else f"{len(cache.shards)} shards",
            do="Choose another folder, or delete this cache: kdpipe cache gc",
        )
    return cache


def _provenance(store: Store, caches: Sequence[Cache]) -> list[dict[str, Any]]:
    """Runs so far, those of the sources, and the merge, with shards and teacher where the last run had them."""
    past = read_provenance(store)
    for cache in caches:
        past += [run for run in read_provenance(cache.store) if run not in past]
    merged = {
        "merged": [place_of(cache.store.url) for cache in caches],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    samples = {s["name"]: s["samples"] for cache in caches for s in cache.shards}
    return [*past, {**past[-1], **merged, "samples": sum(samples.values())}] if past else []
