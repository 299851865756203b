"""Integrity: every byte of a cache is the one that was written, nothing is missing and nothing is unexpected."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kdpipe._util.fingerprint import fingerprint, sha256
from kdpipe.cache.cache import tasks_by_segment
from kdpipe.cache.checked import (
    check_segment,
    parse_canaries,
    parse_root,
    read_lost_task,
    read_part_record,
    read_segment,
    read_store_record,
    read_task,
)
from kdpipe.cache.chunks import ChecksumError, TaskFile
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import (
    CALIBRATION,
    CANARY_LABELS,
    PROVENANCE,
    ROOT,
    STORE_RECORD,
    Segment,
    padded_rows,
    part_file,
    part_named,
    part_record,
)
from kdpipe.cache.lease import LOCKS
from kdpipe.cache.modules import calibration_name, load_tensors, needed
from kdpipe.cache.names import is_folder
from kdpipe.cache.select import HEAD
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError
from kdpipe.targets import ArrayField

Problem = dict[str, str]
T = TypeVar("T")


def check_integrity(store: Store) -> tuple[list[Problem], dict[str, int]]:
    """Check every file of a cache against the record of its digest; never raises for damage, but lists it.

    Returns:
        problems: {"where": file, "what": damage}, empty for an intact cache.
        counts: files, bytes and commits checked.

    Raises:
        CacheError: there is no cache at all.
    """
    names = store.files()
    if not any(name.startswith(("commits/", ROOT)) for name in names):
        raise CacheError("no cache here", where=store, do="Correct the path")
    check = _Check(store)
    check.root()
    if PROVENANCE in names:
        check.record(PROVENANCE, lambda: read_provenance(store))
    records = [n for n in names if n.startswith("commits/") and n.endswith(".json") and n != STORE_RECORD]
    segments = {}
    for name in (n for n in records if n.endswith("/segment.json")):
        segment = check.segment(name)
        if segment is not None:
            segments[segment.name] = segment
    check.parts({name: part for name in records if (part := part_named(name))}, segments.values())
    lost = []
    for folder, tasks in tasks_by_segment(records).items():
        if folder in segments:
            for name in tasks:
                check.commit(name, segments[folder])
            continue
        # What the segment's record listed is unknown, and is not unexpected. A damaged one is listed already.
        if not is_folder(f"commits/{folder}"):
            continue  # unexpected
        lost.append(f"segments/{folder}/")
        for name in tasks:
            check.arrays(name)
        if f"commits/{folder}/segment.json" not in names:
            check.problem(f"commits/{folder}/segment.json", f"missing: {len(tasks)} finished tasks need it")
    for name in sorted(set(names) - check.known):
        # Locks are of those who are writing now, or of a process that was killed; they are no part of the cache.
        if not name.startswith((LOCKS, *lost)):
            what = "unexpected: no record in the cache lists it (an interrupted write? cache-teacher deletes it)"
            check.problem(name, what)
    return check.problems, check.counts


def required(segments: Iterable[Segment]) -> dict[str, str]:
    """The parts that have to be there for these segments, by name, and why.

    A tail is none of them: nothing that is stored shows that one was requested.
    """
    segments = list(segments)
    found = dict.fromkeys(needed(segments), "a segment can't be read without this part")
    if any(segment.encoding.pooled is not None for segment in segments):
        found[HEAD] = "a segment keeps pooled features, whose logits need this part; repeat its cache-teacher"
    return found


class _Check:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[Problem] = []
        self.known: set[str] = set()
        self.damaged: set[str] = set()
        self.identity: dict[str, Any] = {}  # stays empty where it is unknown
        self.counts = {"files": 0, "bytes": 0, "commits": 0}

    def problem(self, where: str, what: str) -> None:
        self.problems.append({"where": where, "what": what})
        self.damaged.add(where)

    def expect(self, holds: bool, where: str, what: str) -> None:
        if not holds:
            self.problem(where, what)

    def read(self, name: str) -> bytes | None:
        self.known.add(name)
        try:
            data = self.store.read(name)
        except CacheError as e:
            self.problem(name, e.what)
            return None
        self.counts["files"] += 1
        self.counts["bytes"] += len(data)
        return data

    def valid(self, name: str, check: Callable[[], T]) -> T | None:
        """What a check of a file gives; None where it fails, which is a problem of that file."""
        try:
            return check()
        except CacheError as e:
            self.problem(name, e.what)
            return None

    def record(self, name: str, read: Callable[[], T]) -> T | None:
        """What reading a sealed record gives."""
        return None if self.read(name) is None else self.valid(name, read)

    def sealed(self, files: dict[str, str]) -> dict[str, bytes]:
        """Of the plain files whose sha256 a record holds, those that are as they were written."""
        return {name: self.store.read(name) for name, digest in files.items() if self.file(name, digest)}

    def root(self) -> None:
        """The store's record and the files that it lists: identity and canaries."""
        content = self.record(STORE_RECORD, lambda: read_store_record(self.store))
        if content is None:
            return
        files = self.sealed(content["files"])
        if ROOT in files:
            self.identity = self.valid(ROOT, lambda: parse_root(files[ROOT], f"{self.store}/{ROOT}")) or {}
        if self.identity:
            self.own(STORE_RECORD, content)
        if self.identity and files.keys() == content["files"].keys():
            self.valid(CANARY_LABELS, lambda: parse_canaries(files, self.identity, self.store))

    def own(self, name: str, content: dict[str, Any]) -> None:
        """That a record is of a cache of this identity, where that is known."""
        of = content.get("identity_digest")
        if self.identity and of is not None:
            self.expect(of == fingerprint(self.identity), name, "it is of another cache: its identity_digest differs")

    def segment(self, name: str) -> Segment | None:
        """A segment's record, and the metadata of its arrays."""
        found = self.record(name, lambda: read_segment(self.store, name))
        if found is None:
            return None
        segment, content = found
        self.own(name, content)
        digests = content["files"]
        files = self.sealed(digests)
        if self.identity and files.keys() == digests.keys():
            self.valid(name, lambda: check_segment(segment, files, self.identity, self.store))
        return segment

    def file(self, name: str, digest: str, size: int | None = None) -> bool:
        if name in self.known:
            return name not in self.damaged
        data = self.read(name)
        if data is None:
            return False
        if size is not None and len(data) != size:
            self.problem(name, f"{len(data)} bytes instead of {size}")
            return False
        if sha256(data) != digest:
            self.problem(name, "its bytes are not those that were written (sha256 differs)")
            return False
        return True

    def parts(self, records: dict[str, str], segments: Iterable[Segment]) -> None:
        """The parts by the paths of their records, and that those which segments need are among them."""
        for name, part in records.items():
            self.part(name, part)
        for part, why in sorted(required(segments).items()):
            self.expect(part in records.values(), part_record(part), f"missing: {why}")

    def part(self, name: str, part: str) -> None:
        """A part's record, its file, and that it is of this cache's teacher, or of the content in its name."""
        content = self.record(name, lambda: read_part_record(self.store, part))
        file = part_file(part)
        if content is None:
            self.known.add(file)  # which a damaged record can't list, but it isn't unexpected
            return
        self.own(name, content)
        if not self.file(file, content["files"][file]):
            return
        teacher = self.identity.get("teacher", {}).get("weights")
        of = content["about"].get("teacher")
        if not part.startswith(CALIBRATION):
            self.expect(of == teacher, name, f"it is of another teacher: of weights {str(of)[:16]}")
            return
        tensors = self.valid(file, lambda: load_tensors(self.store.read(file), file))
        if tensors is not None:
            self.expect(calibration_name(tensors) == part, name, "its name is of another content")

    def arrays(self, name: str) -> None:
        """A task's record and its files, of a segment of which nothing else is known."""
        content = self.record(name, lambda: read_lost_task(self.store, name))
        if content is not None:
            self.counts["commits"] += 1
            for file, entry in content["files"].items():
                self.file(file, entry["sha256"], entry["bytes"])

    def commit(self, name: str, segment: Segment) -> None:
        """A task's record: that it belongs where it lies, and that its files match it."""
        shards = enumerate(self.identity.get("shards", []))
        found = next(((i, s) for i, s in shards if segment.commit(s["name"]) == name), None)
        if found is None:
            self.read(name)
            self.problem(name, "it records a task that this cache does not have")
            return
        position, shard = found
        content = self.record(name, lambda: read_task(self.store, segment, position, shard))
        if content is None:
            # Which a damaged record can't list, but they aren't unexpected.
            self.known |= set(segment.chunks(position))
            return
        self.counts["commits"] += 1
        self.own(name, content)
        self.expect(segment.owns(content), name, "it is of another segment of this name: cache-teacher does it again")
        for file, field in zip(segment.chunks(position), segment.encoding.fields(), strict=True):
            if not self.file(file, content["files"][file]["sha256"], content["files"][file]["bytes"]):
                self.locate(segment, field, position, file)

    def locate(self, segment: Segment, field: ArrayField, position: int, file: str) -> None:
        """Which views and rows of a damaged file can't be read any more."""
        try:
            size = self.store.size(file)
        except CacheError:  # on the list already
            return
        if size is None:
            return
        shards, block = self.identity["shards"], int(self.identity["block_size"])
        sizes = {"rows": padded_rows(shards, block), "samples": int(shards[position]["samples"]), "block": block}
        step = segment.rows_a_chunk(field.name, block)
        try:
            chunks = TaskFile(self.store, file, size, segment, field, **sizes)
        except (ChecksumError, CacheError) as e:
            self.problem(file, f"nothing of it can be read: {e}")
            return
        for v, view in enumerate(segment.views):
            for start in range(0, sizes["samples"], step):
                try:
                    chunks.read(v, start, start + step)
                except (ChecksumError, CacheError) as e:
                    self.problem(file, f"view {view} rows {start}:{start + step} can't be read: {e}")
