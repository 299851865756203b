"""Writing: create a cache, add a segment, commit a task. The order of the steps is the protocol.

A missing chunk reads as its fill value, silently; so presence never comes from arrays, only from records, and
a record is written when all the files that it names are on disk. Records are made, never replaced: of two runs that
write one at the same moment, the second finds the first one's. Zarr lays out files in memory; `Store` writes them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdpipe._util.fingerprint import canonical_json, fingerprint, sha256
from kdpipe._util.untrusted import load_json
from kdpipe.cache.cache import Cache, check_files, require_identity
from kdpipe.cache.checked import check_identity, read_segment, read_task
from kdpipe.cache.chunks import ChecksumError, decoded
from kdpipe.cache.layout import (
    CANARY_CHUNK,
    CANARY_LABELS,
    FORMAT,
    OF_STORE,
    PROVENANCE,
    ROOT,
    STORE_RECORD,
    Segment,
    part_file,
    part_record,
)
from kdpipe.cache.lease import LOCKS
from kdpipe.cache.locks import Held, committing
from kdpipe.cache.metadata import MOST_BYTES
from kdpipe.cache.modules import unreferenced
from kdpipe.cache.names import fits_shard, shown
from kdpipe.cache.schema import validated
from kdpipe.cache.schemas import Provenance
from kdpipe.cache.sealed import read_record, seal
from kdpipe.cache.store import PARTIAL, Store
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.targets import Quality
from kdpipe.views.canaries import Canary

_REPEAT = "Let that run end, then repeat the command: finished tasks are kept"
_SEGMENTS = "segments/zarr.json"


def create(store: Store, identity: dict[str, Any], canaries: list[Canary]) -> Cache:
    """Create a cache where there is nothing, or finish a creation that was interrupted.

    Of the canaries those are kept whose pixels one chunk can hold.

    Raises:
        CacheError: something else is there, it can't be written, the identity is none that a cache can have, or another
            run has created a cache meanwhile.
    """
    from kdpipe.cache.arrays import root_files

    require_names(identity["shards"])
    check_identity(load_json(canonical_json(identity)), store)
    require_empty(store, "Choose another --out")
    canaries = canaries[: max(1, MOST_BYTES // canaries[0].pixels.nbytes)]
    pixels = np.stack([c.pixels for c in canaries])
    labels = seal({"canaries": [c.label() for c in canaries]})
    files = {**root_files(identity, pixels), CANARY_LABELS: labels}
    assert {*files} == {*OF_STORE}
    put_store(store, files, {"format": FORMAT, "identity_digest": fingerprint(identity)})
    cache = Cache(store)
    require_identity(store, load_json(canonical_json(identity)), cache.identity)
    return cache


def put_store(store: Store, files: dict[str, bytes], about: dict[str, Any]) -> None:
    """Write the files that make an empty cache, and last the record of these files, with `about` in it.

    Raises:
        CacheError: they can't be written, or another run has made a cache meanwhile.
    """
    for name, data in files.items():
        # What an interrupted creation left may be replaced, what another run's record names may not.
        if not store.put_new(name, data):
            _require_none(store, STORE_RECORD, "a cache")
            store.put(name, data)
    store.sync_parent()
    record = seal({**about, "files": {name: sha256(data) for name, data in files.items()}})
    if not store.put_new(STORE_RECORD, record):
        _require_none(store, STORE_RECORD, "a cache")


def _require_none(store: Store, record: str, what: str) -> None:
    if store.exists(record):
        raise CacheError(f"another run has made {what} here at the same moment", where=f"{store}/{record}", do=_REPEAT)


def require_names(shards: Sequence[dict[str, Any]]) -> None:
    """Raise CacheError for the first shard whose name can't be that of its tasks' records."""
    for shard in shards:
        if not fits_shard(shard["name"]):
            raise CacheError(
                "the records of a shard's tasks are named after it, which its name doesn't allow",
                found=shown(shard["name"]),
                allowed="up to 209 bytes of UTF-8 without slashes, backslashes and control characters",
                do="Rename the shard, and index it again",
            )


def require_empty(store: Store, do: str) -> None:
    """Raise CacheError if a place holds anything but what an interrupted creation of a cache left."""
    ours = (ROOT, "canaries/", PROVENANCE, LOCKS)
    there = [name for name in store.files() if not (name.startswith(ours) or name.endswith(PARTIAL))]
    if there:
        raise CacheError("not empty and not a cache", where=store, found=there[0], do=do)


def sweep(cache: Cache) -> None:
    """Delete what interrupted writes left: temporary files, arrays that no record names, parts of no segment.

    Only for the one process that writes; see `locks`.
    """
    store = cache.store
    store.sweep()
    for name in unreferenced(cache):
        store.remove(part_record(name))
        del cache.parts[name]
    known = {f"segments/{s.name}": s for s in cache.segments}
    committed = {name for record in cache.commits.values() for name in record["files"]}
    for name in store.files("segments"):
        folder = "/".join(name.split("/")[:2])
        if (folder not in known and name != _SEGMENTS) or ("/c/" in name and name not in committed):
            store.remove(name)
    for name in set(store.files("parts")) - {part_file(part) for part in cache.parts}:
        store.remove(name)


def read_canaries(cache: Cache) -> list[Canary]:
    """The canaries of an open cache, whose files were checked when it was opened."""
    shape, digest = (len(cache.canaries), cache.size, cache.size, 3), cache.record["files"][CANARY_CHUNK]
    [data] = check_files(cache.store, {CANARY_CHUNK: digest}).values()
    try:
        pixels = decoded(data, shape, "uint8")
    except ChecksumError as e:
        raise CorruptionError(f"canaries can't be read: {e}", where=f"{cache.store}/{CANARY_CHUNK}") from e
    return [Canary(**label, pixels=p) for label, p in zip(cache.canaries, pixels, strict=True)]


def add_segment(cache: Cache, segment: Segment) -> None:
    """Create the empty arrays of a segment, then the record that makes it part of the cache.

    Nothing is done where another run has added the same segment since the cache was opened.

    Raises:
        CacheError: it can't be written, or there are records of another segment of this name.
        IdentityError: see `Cache.require_current`.
    """
    from kdpipe.cache.arrays import segment_files

    store = cache.store
    files = segment_files(cache, segment)
    # That of all segments stays as it is: records of segments that are there have its digest.
    there = store.read_if(_SEGMENTS)
    files |= {} if there is None else {_SEGMENTS: there}
    content = {"segment": segment.json(), "identity_digest": cache.identity_digest}
    record = seal({**content, "files": {name: sha256(data) for name, data in files.items()}})
    cache.require_current()
    if store.read_if(segment.record) != record:
        # Records of tasks would name arrays that are about to be made again.
        _require_unknown(store, segment)
        for name, data in files.items():
            if not store.put_new(name, data):
                _require_unknown(store, segment)
                store.put(name, data)
        cache.require_current()
        if not store.put_new(segment.record, record):
            _require_unknown(store, segment)
    require_added(store, segment)
    cache.refresh()


def _require_unknown(store: Store, segment: Segment) -> None:
    there = [name for name in store.files(f"commits/{segment.name}") if not name.endswith(PARTIAL)]
    if there:
        raise CacheError(
            f"there are records of segment {segment.name} already",
            where=f"{store}/{there[0]}",
            do="Repeat the command: if another run has added it, this one continues with it",
        )


def require_added(store: Store, segment: Segment) -> None:
    """Refuse to write to a segment whose record another run has replaced, which locks prevent where there are any.

    Raises:
        CacheError: the record is of another segment of this name, or missing.
    """
    found = read_segment(store, segment.record)[0].digest
    if found != segment.digest:
        raise CacheError(
            "another run has added another segment of this name at the same moment",
            where=f"{store}/{segment.record}",
            found=f"digest {found[:16]}",
            allowed=segment.digest[:16],
            do="Let that run end, then repeat the command, which adds a segment of its own or names what differs",
        )


def finished(cache: Cache, segment: Segment, shard: int) -> dict[str, Any] | None:
    """The record of a task, be it that somebody else has committed it since the cache was opened; None without one."""
    store, identity = cache.store, cache.shards[shard]
    there = store.exists(segment.commit(identity["name"]))
    record = read_task(store, segment, shard, identity) if there else None
    return record if record is not None and cache.owns(record) and segment.owns(record) else None


def commit_task(
    cache: Cache, segment: Segment, shard: int, fields: dict[str, np.ndarray], quality: Quality
) -> dict[str, Any]:
    """Make one finished task part of the cache; see `commit_files`.

    Args:
        cache: the open cache.
        segment: one of its segments.
        shard: position of the task's shard in `cache.shards`.
        fields: by field name, (views, rows, ...) in the segment's dtypes.
        quality: what was measured on the way.
    """
    from kdpipe.cache.arrays import task_files

    return commit_files(cache, segment, shard, task_files(cache, segment, shard, fields), quality)


def commit_files(
    cache: Cache, segment: Segment, shard: int, files: dict[str, bytes], quality: Quality
) -> dict[str, Any]:
    """Make a task's files part of the cache: the files first, the record last.

    Files of a finished task are never replaced: where another run has finished it meanwhile, its record is what is
    returned, and these files are dropped.

    Args:
        cache, segment, shard, quality: as `commit_task`.
        files: exactly those of the task, by path.

    Raises:
        CacheError: they can't be written, another run writes the same task though it was locked, or see
            `require_added`.
        IdentityError: see `Cache.require_current`.
    """
    store, identity = cache.store, cache.shards[shard]
    name = segment.commit(identity["name"])
    # The folder of a task's first file is that task's alone.
    folder = min(files).rpartition("/")[0]
    with committing(store, segment.name, identity["name"], folder) as held:
        there = finished(cache, segment, shard)
        if there is None:
            # Arrays of another cache's segment, or of another segment of this name, lie at the same paths.
            cache.require_current()
            require_added(store, segment)
            if store.exists(name):
                # Of another segment or cache; it must not stand when its files go.
                store.remove(name)
                store.sync_folders(name)

            def ours() -> None:
                held()
                if store.exists(name):
                    # Who waited for long enough has gone on.
                    raise CacheError(
                        "another run has finished this task meanwhile", where=f"{store}/{name}", do=_REPEAT
                    )

            entries = {file: _put_once(store, file, data, ours) for file, data in files.items()}
            there = _record(cache, segment, identity, entries, quality)
            held()
            cache.require_current()
            require_added(store, segment)
            if not store.put_new(name, seal(there)):
                there = _same(finished(cache, segment, shard), entries, f"{store}/{name}")
    cache.commits[segment.name, identity["name"]] = there
    return there


def _put_once(store: Store, name: str, data: bytes, held: Held) -> dict[str, Any]:
    """Write a file of a task that isn't committed; size and sha256 of what is there then."""
    # What an interrupted run left needn't be sent again; what differs may go, for no record names it.
    left = store.read_if(name) == data
    if not left and not store.put_new(name, data):
        held()
        store.put(name, data)
    digest = sha256(data)
    if not left and sha256(store.read(name)) != digest:
        raise CacheError("another run writes the same task at the same moment", where=f"{store}/{name}", do=_REPEAT)
    return {"bytes": len(data), "sha256": digest}


def _record(
    cache: Cache, segment: Segment, shard: dict[str, Any], files: dict[str, dict[str, Any]], quality: Quality
) -> dict[str, Any]:
    return {
        "segment": segment.name,
        "segment_digest": segment.digest,
        "identity_digest": cache.identity_digest,
        "shard": shard,
        "files": files,
        "quality": quality.json(),
    }


def _same(record: dict[str, Any] | None, files: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """The record that another run has written although the task was locked, if it is of these files."""
    if record is None or record["files"] != files:
        do = "kdpipe verify lists what is damaged; delete that task's record, then repeat the command"
        raise CacheError("another run has committed the same task with other values", where=where, do=do)
    return record


def write_provenance(store: Store, entry: dict[str, Any]) -> None:
    """Append one run to the provenance, which is recorded and never compared."""
    runs = read_provenance(store)
    store.put(PROVENANCE, seal({"runs": [*runs, entry]}))


def read_provenance(store: Store) -> list[dict[str, Any]]:
    """The runs that made a cache, oldest first.

    Raises:
        CorruptionError: it is damaged, or isn't as kdpipe writes it.
    """
    if not store.exists(PROVENANCE):
        return []
    content = read_record(store, PROVENANCE)
    validated(Provenance, content, f"{store}/{PROVENANCE}")
    return list(content["runs"])
