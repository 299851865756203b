"""Writing: create a cache, add a segment, commit a task. The order of the steps is the protocol.

A missing chunk reads as its fill value, silently; so presence never comes from arrays, only from records, and
a record is written when everything it vouches for is on disk.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError

from pipeline.cache.cache import Cache, check_files
from pipeline.cache.checked import check_identity, read_segment, read_task
from pipeline.cache.chunks import ChecksumError, decoded
from pipeline.cache.layout import (
    CANARY_CHUNK,
    CANARY_LABELS,
    CANARY_PIXELS,
    FORMAT,
    OF_STORE,
    PROVENANCE,
    ROOT,
    STORE_RECORD,
    Segment,
    fill_value,
    padded_rows,
    part_file,
    part_record,
)
from pipeline.cache.metadata import MOST_BYTES
from pipeline.cache.names import fits_shard, shown
from pipeline.cache.parts import spare
from pipeline.cache.records import read_record, seal
from pipeline.cache.schema import validated
from pipeline.cache.schemas import Provenance
from pipeline.cache.store import PARTIAL, Store
from pipeline.errors import CacheError, CorruptionError
from pipeline.fingerprint import canonical_json, sha256
from pipeline.targets import Quality
from pipeline.untrusted import load_json
from pipeline.views.canaries import Canary

# Of zstd. Features are large and nearly noise: more than the least effort takes them several times as long for 3 %.
_LEVEL, _FAST = 5, 1


def create(store: Store, identity: dict[str, Any], canaries: list[Canary]) -> Cache:
    """Create a cache where there is nothing, or finish a creation that was interrupted.

    Of the canaries those are kept whose pixels one chunk can hold.

    Raises:
        CacheError: something else is there, it can't be written, or the identity is none that a cache can have.
    """
    require_names(identity["shards"])
    check_identity(load_json(canonical_json(identity)), store)
    require_empty(store, "Choose another --out")
    canaries = canaries[: max(1, MOST_BYTES // canaries[0].pixels.nbytes)]
    with store.writing(""):
        # What an interrupted creation left. Zarr's own overwriting would take the folder away, and with it its lock.
        for name in [ROOT, *store.files("canaries")]:
            store.remove(name)
        group = zarr.create_group(
            store.zarr(read_only=False),
            zarr_format=3,
            attributes={"kdpipe": {"format": FORMAT, "identity": identity}},
        )
        pixels = np.stack([c.pixels for c in canaries])
        array = group.create_array(
            CANARY_PIXELS,
            shape=pixels.shape,
            chunks=pixels.shape,
            dtype="uint8",
            compressors=_codecs("noshuffle"),
            dimension_names=("canary", "y", "x", "channel"),
            config={"write_empty_chunks": True},  # black ones too
        )
        array[:] = pixels
    store.put(CANARY_LABELS, seal({"canaries": [c.label() for c in canaries]}))
    store.sync_parent()
    _vouch(store, STORE_RECORD, {"format": FORMAT}, OF_STORE)
    return Cache(store)


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
    ours = (ROOT, "canaries/", PROVENANCE)
    there = [name for name in store.files() if not (name.startswith(ours) or name.endswith(PARTIAL))]
    if there:
        raise CacheError("not empty and not a cache", where=store, found=there[0], do=do)


def sweep(cache: Cache) -> None:
    """Delete what interrupted writes left: temporary files, arrays that no record vouches for, parts of no segment.

    Only for the one process that writes; see `locks`.
    """
    store = cache.store
    store.sweep()
    for name in spare(cache):
        store.remove(part_record(name))
        del cache.parts[name]
    known = {f"segments/{s.name}": s for s in cache.segments}
    committed = {name for record in cache.commits.values() for name in record["files"]}
    for name in store.files("segments"):
        folder = "/".join(name.split("/")[:2])
        if (folder not in known and name != "segments/zarr.json") or ("/c/" in name and name not in committed):
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

    Raises:
        CacheError: it can't be written, or there are records of such a segment, which others may have added meanwhile.
    """
    store, shards = cache.store, cache.shards
    # They would vouch for arrays that are about to be made anew.
    _require_unknown(store, segment)
    block = int(cache.identity["block_size"])
    rows = padded_rows(shards, block)
    with store.writing(segment.name):
        group = zarr.open_group(store.zarr(read_only=False), mode="r+")
        features = segment.encoding.fields(("pooled", "map"))
        for field in segment.encoding.fields():
            chunk = (1, 1, segment.rows_a_chunk(field.name, block), *field.shape)
            # What an interrupted creation left. Zarr's own overwriting would take chunks away too, which another run
            # may just have committed where there are no locks.
            store.remove(f"{segment.array(field.name)}/zarr.json")
            try:
                group.create_array(
                    segment.array(field.name),
                    shape=(len(segment.views), len(shards), rows, *field.shape),
                    chunks=chunk,
                    shards=(len(segment.views), 1, rows, *field.shape),
                    dtype=field.dtype,
                    compressors=_codecs("bitshuffle", _FAST if field in features else _LEVEL),
                    fill_value=fill_value(field.dtype),
                    dimension_names=("view", "shard", "row", *segment.encoding.dimensions(field.name)),
                )
            except ContainsArrayError as e:
                raise _taken(store, segment, "arrays", segment.array(field.name)) from e
    _require_unknown(store, segment)
    _vouch(store, segment.record, {"segment": segment.json()}, segment.metadata)
    require_added(store, segment)
    cache.refresh()


def _require_unknown(store: Store, segment: Segment) -> None:
    there = [name for name in store.files(f"commits/{segment.name}") if not name.endswith(PARTIAL)]
    if there:
        raise _taken(store, segment, "records", there[0])


def _taken(store: Store, segment: Segment, what: str, there: str) -> CacheError:
    return CacheError(
        f"there are {what} of segment {segment.name} already",
        where=f"{store}/{there}",
        do="Repeat the command: if another run has added it, this one goes on with it",
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
            do="Let that run end, then repeat the command, which adds a segment of its own or says what differs",
        )


def finished(cache: Cache, segment: Segment, shard: int) -> dict[str, Any] | None:
    """The record of a task, be it that somebody else has committed it since the cache was opened; None without one."""
    store, identity = cache.store, cache.shards[shard]
    there = store.exists(segment.commit(identity["name"]))
    record = read_task(store, segment, shard, identity) if there else None
    return record if record is not None and segment.owns(record) else None


def commit_task(
    cache: Cache, segment: Segment, shard: int, fields: dict[str, np.ndarray], quality: Quality
) -> dict[str, Any]:
    """Make one finished task part of the cache: arrays first, their digests, the record last.

    Args:
        cache: the open cache.
        segment: one of its segments.
        shard: position of the task's shard in `cache.shards`.
        fields: by field name, (views, rows, ...) in the segment's dtypes.
        quality: what was measured on the way.

    Raises:
        CacheError: it can't be written, or see `require_added`.
    """
    # Arrays of another segment of this name lie at the same paths.
    require_added(cache.store, segment)
    files = write_arrays(cache, segment, shard, fields)
    return write_record(cache, segment, shard, files, quality)


def write_arrays(
    cache: Cache, segment: Segment, shard: int, fields: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Write each field's one file in one assignment and force it to disk; returns size and sha256 by path."""
    store, files = cache.store, {}
    samples = cache.shards[shard]["samples"]
    with store.writing(segment.name):
        place = store.zarr(read_only=False)
        for field in segment.encoding.fields():
            data = fields[field.name]
            expected = (len(segment.views), samples, *field.shape)
            assert data.shape == expected, f"{field.name}: {data.shape} is not {expected}"
            # By its own path: the group's metadata name every shard, which is long to read for each task.
            array = zarr.open_array(place, path=segment.array(field.name), mode="r+")
            padded = np.full((len(segment.views), *array.shape[2:]), fill_value(field.dtype), field.dtype)
            padded[:, :samples] = data
            array[:, shard] = padded
            name = segment.chunk(field.name, shard)
            written = store.read(name)
            files[name] = {"bytes": len(written), "sha256": sha256(written)}
        store.sync(*files)
    return files


def write_record(
    cache: Cache, segment: Segment, shard: int, files: dict[str, dict[str, Any]], quality: Quality
) -> dict[str, Any]:
    """Write the record that makes a task's files count. Everything it names must be on disk by now.

    Raises:
        CacheError: it can't be written, or see `require_added`.
    """
    require_added(cache.store, segment)
    identity = cache.shards[shard]
    record = {
        "segment": segment.name,
        "segment_digest": segment.digest,
        "shard": identity,
        "files": files,
        "quality": quality.json(),
    }
    cache.store.put(segment.commit(identity["name"]), seal(record))
    cache.commits[segment.name, identity["name"]] = record
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


def _vouch(store: Store, record: str, content: dict[str, Any], files: Sequence[str]) -> None:
    store.sync(*files)
    store.put(record, seal({**content, "files": {name: sha256(store.read(name)) for name in files}}))


def _codecs(shuffle: str, level: int = _LEVEL) -> tuple[Any, ...]:
    return (BloscCodec(cname="zstd", clevel=level, shuffle=shuffle), Crc32cCodec())  # type: ignore[arg-type]
