"""Records as they are read: of their schema, at the place and with the names that their content implies.

A cache may be from an untrusted source. What its records name is read, copied and written at once, so names are first
compared with those that the layout gives, and never taken from records.
"""

from collections.abc import Iterable
from typing import Any

from kdpipe.cache.identities import Identity
from kdpipe.cache.layout import (
    CANARY_LABELS,
    FORMAT,
    OF_STORE,
    STORE_RECORD,
    Segment,
    padded_rows,
    part_file,
    part_record,
)
from kdpipe.cache.metadata import check_array, check_group, check_pixels, load_document
from kdpipe.cache.names import is_file, shown
from kdpipe.cache.schema import validated, wrong
from kdpipe.cache.schemas import CanaryLabels, PartRecord, SegmentRecord, StoreRecord, TaskRecord
from kdpipe.cache.sealed import read_record, unseal
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError

Content = dict[str, Any]


def read_store_record(store: Store) -> Content:
    """The record of the store: `format`, and `files` by name.

    Raises:
        CacheError: it is of another format, or missing.
        CorruptionError: it is damaged, or isn't as kdpipe writes it.
    """
    content, where = read_record(store, STORE_RECORD), f"{store}/{STORE_RECORD}"
    if isinstance(content.get("format"), int) and content["format"] != FORMAT:
        raise CacheError("cache of another format", where=store, found=content["format"], allowed=FORMAT)
    validated(StoreRecord, content, where)
    _require_names(content["files"], OF_STORE, where)
    return content


def parse_root(data: bytes, where: object) -> Content:
    """The identity in the root's metadata; raises CorruptionError."""
    document = load_document(data, where)
    attributes = document.pop("attributes", None)
    check_group({**document, "attributes": {}}, where)
    own = attributes.get("kdpipe") if isinstance(attributes, dict) else None
    if not isinstance(own, dict) or {*attributes} != {"kdpipe"} or {*own} != {"format", "identity"}:
        raise wrong(where, "attributes", "not the format and the identity of a cache")
    if own["format"] != FORMAT:
        raise wrong(where, "attributes.kdpipe.format", "not that of the store's record", own["format"])
    identity: Content = own["identity"]
    check_identity(identity, where)
    return identity


def check_identity(identity: Content, where: object) -> None:
    """Require what a cache can be a cache of; raises CorruptionError."""
    validated(Identity, identity, where)


def parse_canaries(files: dict[str, bytes], identity: Content, store: Store) -> list[Content]:
    """The labels of the canaries, of files that match the store's record; raises CorruptionError."""
    where = f"{store}/{CANARY_LABELS}"
    content = unseal(files[CANARY_LABELS], where)
    validated(CanaryLabels, content, where)
    labels: list[Content] = content["canaries"]
    _, group, _, pixels, _ = OF_STORE
    check_group(load_document(files[group], f"{store}/{group}"), f"{store}/{group}")
    check_pixels(files[pixels], f"{store}/{pixels}", len(labels), int(identity["render_size"]))
    return labels


def read_segment(store: Store, name: str) -> tuple[Segment, Content]:
    """The segment that a record of this name is about, and the record.

    Raises:
        CorruptionError: it is damaged, isn't as kdpipe writes it, or is about another segment.
    """
    content, where = read_record(store, name), f"{store}/{name}"
    validated(SegmentRecord, content, where)
    segment = Segment.parse(content["segment"])
    if segment.record != name:
        raise wrong(where, "segment", f"it describes segment {segment.name}")
    _require_names(content["files"], segment.metadata, where)
    return segment, content


def check_segment(segment: Segment, files: dict[str, bytes], identity: Content, store: Store) -> None:
    """Require of a segment and of its zarr.json files that they are of such a cache; raises CorruptionError."""
    where, classes = f"{store}/{segment.record}", identity["teacher"]["num_classes"]
    if segment.encoding.num_classes != classes:
        raise wrong(where, "segment.encoding.num_classes", f"the cache has {classes}", segment.encoding.num_classes)
    shards, block = identity["shards"], int(identity["block_size"])
    groups, arrays = segment.metadata[:2], segment.metadata[2:]
    for name in groups:
        check_group(load_document(files[name], f"{store}/{name}"), f"{store}/{name}")
    rows = padded_rows(shards, block)
    for name, field in zip(arrays, segment.encoding.fields(), strict=True):
        check_array(files[name], f"{store}/{name}", segment, field, len(shards), rows, block)


def read_task(store: Store, segment: Segment, position: int, shard: Content) -> Content:
    """The record of a task of this segment: the shard at this position of the identity.

    Raises:
        CorruptionError: it is damaged, isn't as kdpipe writes it, or is about another task.
    """
    name = segment.commit(shard["name"])
    content, where = read_record(store, name), f"{store}/{name}"
    validated(TaskRecord, content, where)
    if content["segment"] != segment.name or content["shard"] != shard:
        raise wrong(where, "", "it records a task that this cache does not have")
    _require_names(content["files"], segment.chunks(position), where)
    views, most = content["quality"]["views"], len(segment.views) * shard["samples"]
    if views > most:
        raise wrong(where, "quality.views", f"the task has {most}", views)
    return content


def read_lost_task(store: Store, name: str) -> Content:
    """The record of a task of a segment whose own record is gone: its files are of that segment's folder.

    Raises:
        CorruptionError: it is damaged or isn't as kdpipe writes it.
    """
    content, where = read_record(store, name), f"{store}/{name}"
    validated(TaskRecord, content, where)
    folder = f"segments/{name.split('/')[1]}/"
    for file in content["files"]:
        if not (is_file(file) and file.startswith(folder)):
            raise wrong(where, f"files.{shown(file)}", f"not below {folder}")
    return content


def read_part_record(store: Store, part: str) -> Content:
    """The record of a part.

    Raises:
        CorruptionError: it is damaged, isn't as kdpipe writes it, or is about another part.
    """
    content, where = read_record(store, part_record(part)), f"{store}/{part_record(part)}"
    check_part(content, where)
    if content["part"] != part:
        raise wrong(where, "part", f"it describes part {content['part']}")
    return content


def check_part(content: Content, where: object) -> None:
    """Require a part's record to be a possible one; raises CorruptionError."""
    validated(PartRecord, content, where)
    _require_names(content["files"], [part_file(content["part"])], where)


def _require_names(files: Iterable[str], expected: Iterable[str], where: object) -> None:
    files, expected = set(files), set(expected)
    if files != expected:
        extra, missing = sorted(files - expected), sorted(expected - files)
        what = f"it names {shown(extra[0])}, which is no file of its own" if extra else f"without {missing[0]}"
        raise wrong(where, "files", what)
