"""Freeing space: files that no record names, caches that nothing refers to, views that are no longer needed.

Records go first, data after them: a kill at any instant leaves a valid cache with less in it, and repeating the
command finishes.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe._util.untrusted import load_json
from kdpipe.cache.cache import Cache
from kdpipe.cache.layout import CANARY_LABELS, PROVENANCE, ROOT, STORE_RECORD, part_file, part_record
from kdpipe.cache.lease import LOCKS
from kdpipe.cache.modules import unreferenced
from kdpipe.cache.store import Store
from kdpipe.cache.tools.ls import is_cache, place_of
from kdpipe.errors import CacheError, ConfigError


def orphans(cache: Cache) -> dict[str, int]:
    """Files that nothing needs and their bytes: leftovers, unexpected ones, unreferenced calibrations.

    Only true while no process writes: see `locks`.
    """
    store = cache.store
    known = {STORE_RECORD, CANARY_LABELS, PROVENANCE, *cache.record["files"]}
    for segment in cache.segments:
        known |= {segment.record, *segment.metadata}
    for (segment_name, shard), record in cache.commits.items():
        known |= {f"commits/{segment_name}/{shard}.json", *record["files"]}
    for part in set(cache.parts) - set(unreferenced(cache)):
        known |= {part_record(part), part_file(part)}
    return {name: store.size(name) or 0 for name in store.files() if name not in known and not name.startswith(LOCKS)}


def remove_orphans(store: Store, names: Iterable[str] | None = None) -> dict[str, int]:
    """Delete orphans, all or those among `names` that still are; returns their bytes by name. Hold the lock."""
    found = orphans(Cache(store))
    wanted = found if names is None else {name: found[name] for name in names if name in found}
    _remove(store, wanted)
    return wanted


def remove_records(cache: Cache, segment_names: Sequence[str]) -> None:
    """Take segments out of a cache; their data become orphans. Hold the lock."""
    store = cache.store
    for segment in [s for s in cache.segments if s.name in segment_names]:
        tasks = [segment.commit(name) for name in cache.committed(segment)]
        for name in [*tasks, segment.record]:
            store.remove(name)
        # On disk before any of their data goes.
        store.sync_folders(segment.record)
    cache.refresh()


def remove_cache(store: Store) -> int:
    """Delete a whole cache; the bytes that were freed. Hold the lock.

    The root goes last: until then the rest is known to be a cache, and repeating finds it.

    Raises:
        CacheError: it is not a cache of kdpipe's.
    """
    if not is_cache(store):
        raise CacheError("not a cache: nothing was deleted", where=store)
    names = store.files()
    size = sum(store.size(name) or 0 for name in names)
    _remove(store, sorted((n for n in names), key=_turn))
    if store.local is not None:
        with suppress(OSError):
            store.local.rmdir()
    return size


def _turn(name: str) -> tuple[int, str]:
    """Task records, segment records, data, the store's record, the files that it names, the root, locks."""
    if name.startswith(LOCKS):
        return 6, name
    if name == ROOT:
        return 5, name
    if name.startswith("canaries/"):
        return 4, name
    if name == STORE_RECORD:
        return 3, name
    if name.startswith("commits/"):
        return int(name.endswith("/segment.json")), name
    return 2, name


def _remove(store: Store, names: Iterable[str]) -> None:
    with store.writing(""):
        for name in names:
            store.remove(name)
        if store.local is not None:
            for folder, _, _ in os.walk(store.local, topdown=False):
                if Path(folder) != store.local:
                    with suppress(OSError):  # not empty
                        Path(folder).rmdir()


@dataclass(frozen=True)
class Wanted:
    """What still refers to caches: where they lie, as absolute paths or URLs, and root digests."""

    places: frozenset[str]
    digests: frozenset[str]

    def has(self, store: Store) -> bool:
        """Whether something refers to a cache, by its place or by its content.

        Raises:
            CacheError: its place is not among those, and its content can't be read.
        """
        if place_of(store.url) in self.places:
            return True
        # Without the store's record its creation or its deletion was interrupted: it has no content.
        return store.exists(STORE_RECORD) and Cache(store).root_digest() in self.digests


def wanted(keep: Sequence[str]) -> Wanted:
    """Read what --keep names: caches, and JSON files with the keys `cache` and `root`, or globs of these.

    Such files are what `kdpipe inspect --json` prints. A relative path in one is looked for from the working
    directory and from each folder above the file, because it isn't recorded where the command ran.

    Raises:
        ConfigError: a name matches nothing, or is neither a cache nor such a file.
    """
    places, digests = set(), set()
    for pattern in keep:
        remote = "://" in pattern
        as_is = remote or os.path.exists(pattern)
        names = [pattern] if as_is else sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise ConfigError("matches nothing: nothing was deleted", where=f"--keep {pattern}")
        for name in names:
            if remote or Path(name).is_dir():
                if not is_cache(Store(name)):
                    raise ConfigError("not a cache: nothing was deleted", where=f"--keep {name}")
                places.add(place_of(name))
                continue
            named = _reference(Path(name))
            digests |= {named["root"]} if "root" in named else set()
            if "cache" in named:
                starts = [Path.cwd(), *Path(name).absolute().parents] if "://" not in named["cache"] else []
                places |= {place_of(named["cache"]), *(place_of(str(start / named["cache"])) for start in starts)}
    return Wanted(frozenset(places), frozenset(digests))


def _reference(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path.read_text())
    except (OSError, ValueError) as e:
        raise ConfigError("can't be read as JSON: nothing was deleted", where=f"--keep {path}") from e
    named = {k: content[k] for k in ("cache", "root") if isinstance(content, dict) and isinstance(content.get(k), str)}
    if not named:
        raise ConfigError(
            "names no cache: nothing was deleted",
            where=f"--keep {path}",
            allowed="JSON with the keys cache or root, as kdpipe inspect --json prints",
        )
    return named
