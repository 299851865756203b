"""Integrity: every byte of a cache is the one that was written, nothing is missing and nothing is foreign."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr

from pipeline.cache.cache import tasks_by_segment
from pipeline.cache.layout import (
    CALIBRATION,
    FORMAT,
    PROVENANCE,
    ROOT,
    STORE_RECORD,
    Segment,
    part_file,
    part_named,
    part_record,
)
from pipeline.cache.parts import calibration_name, needed
from pipeline.cache.records import read_record
from pipeline.cache.select import HEAD
from pipeline.cache.store import Store
from pipeline.errors import CacheError
from pipeline.fingerprint import sha256
from pipeline.tensors import parse

Problem = dict[str, str]


def check_integrity(store: Store) -> tuple[list[Problem], dict[str, int]]:
    """Check every file of a cache against what vouches for it; never raises for damage, but lists it.

    Returns:
        problems: {"where": file, "what": damage}, empty for an intact cache.
        counts: files, bytes and commits checked.

    Raises:
        CacheError: there is no cache at all.
    """
    names = store.files()
    if not any(name.startswith(("commits/", ROOT)) for name in names):
        raise CacheError("no cache here", where=store, do="Mend the path")
    check = _Check(store)
    check.record(STORE_RECORD)
    if PROVENANCE in names:
        check.record(PROVENANCE)
    records = [n for n in names if n.startswith("commits/") and n.endswith(".json") and n != STORE_RECORD]
    segments = {}
    for name in (n for n in records if n.endswith("/segment.json")):
        content = check.record(name)
        if content is not None:
            segment = Segment.parse(content["segment"])
            segments[segment.name] = segment
            check.expect(segment.record == name, name, f"it describes segment {segment.name}")
    check.parts({name: part for name in records if (part := part_named(name))}, segments.values())
    shards = check.shards()
    lost = []
    for folder, tasks in tasks_by_segment(records).items():
        if folder in segments:
            for name in tasks:
                check.commit(name, segments, shards)
            continue
        # What the segment's record vouched for can't be told, and is not foreign. A damaged one is listed already.
        lost.append(f"segments/{folder}/")
        for name in tasks:
            check.arrays(name)
        if f"commits/{folder}/segment.json" not in names:
            check.problem(f"commits/{folder}/segment.json", f"missing: {len(tasks)} finished tasks need it")
    for name in sorted(set(names) - check.known):
        if not name.startswith(tuple(lost)):
            what = "foreign: nothing in the cache vouches for it (an interrupted write? cache-teacher sweeps)"
            check.problem(name, what)
    return check.problems, check.counts


def required(segments: Iterable[Segment]) -> dict[str, str]:
    """The parts that have to be there for these segments, by name, and why.

    A tail is none of them: nothing that is stored says that one was asked for.
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
        self.counts = {"files": 0, "bytes": 0, "commits": 0}

    def problem(self, where: str, what: str) -> None:
        self.problems.append({"where": where, "what": what})

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

    def record(self, name: str) -> dict[str, Any] | None:
        """A sealed record, and the plain files whose sha256 it holds."""
        if self.read(name) is None:
            return None
        try:
            content = read_record(self.store, name)
        except CacheError as e:
            self.problem(name, e.what)
            return None
        if "format" in content:
            self.expect(content["format"] == FORMAT, name, f"format {content['format']}, this release reads {FORMAT}")
        for file, entry in content.get("files", {}).items():
            if isinstance(entry, str):
                self.file(file, entry)
        return content

    def file(self, name: str, digest: str, size: int | None = None) -> bool:
        if name in self.known:
            return True
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

    def identity(self) -> dict[str, Any]:
        """From the root; empty if that is damaged."""
        try:
            return dict(json.loads(self.store.read(ROOT))["attributes"]["kdpipe"]["identity"])
        except (CacheError, ValueError, KeyError, TypeError):
            return {}

    def shards(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Position and identity of each shard."""
        return {s["name"]: (i, s) for i, s in enumerate(self.identity().get("shards", []))}

    def parts(self, records: dict[str, str], segments: Iterable[Segment]) -> None:
        """The parts by the paths of their records, and that those which segments need are among them."""
        for name, part in records.items():
            self.part(name, part)
        for part, why in sorted(required(segments).items()):
            self.expect(part in records.values(), part_record(part), f"missing: {why}")

    def part(self, name: str, part: str) -> None:
        """A part's record, its file, and that it is of this cache's teacher, or what its name says."""
        content = self.record(name)
        if content is None:
            self.known.add(part_file(part))  # which a damaged record can't vouch for, but it isn't foreign
            return
        fits = content["part"] == part and list(content["files"]) == [part_file(part)]
        self.expect(fits, name, f"it describes part {content['part']}")
        if not fits or any(p["where"] == part_file(part) for p in self.problems):
            return
        teacher = self.identity().get("teacher", {}).get("weights")
        of = content["about"].get("teacher")
        if part.startswith(CALIBRATION):
            try:
                fits = calibration_name(parse(self.store.read(part_file(part)))) == part
            except ValueError as e:  # intact, but nothing that kdpipe wrote
                self.problem(part_file(part), f"can't be read: {e}")
                return
            self.expect(fits, name, "its name is of another content")
        else:
            self.expect(of == teacher, name, f"it is of another teacher: of weights {str(of)[:16]}")

    def arrays(self, name: str) -> None:
        """A task's record and its files, of a segment of which nothing else is known."""
        content = self.record(name)
        if content is not None:
            self.counts["commits"] += 1
            for file, entry in content["files"].items():
                self.file(file, entry["sha256"], entry["bytes"])

    def commit(self, name: str, segments: dict[str, Segment], shards: dict[str, tuple[int, dict[str, Any]]]) -> None:
        """A task's record: that it belongs where it lies, and that its files are what it says."""
        content = self.record(name)
        if content is None:
            return
        self.counts["commits"] += 1
        segment = segments.get(content["segment"])
        position, shard = shards.get(content["shard"]["name"], (None, None))
        fits = segment is not None and shard == content["shard"] and segment.commit(content["shard"]["name"]) == name
        if not fits or segment is None or position is None:
            self.problem(name, "it records a task that this cache does not have")
            return
        self.expect(segment.owns(content), name, "it is of another segment of this name: cache-teacher does it again")
        expected = {segment.chunk(field.name, position): field.name for field in segment.encoding.fields()}
        self.expect(set(content["files"]) == set(expected), name, "it does not name exactly the task's arrays")
        for file, entry in content["files"].items():
            if not self.file(file, entry["sha256"], entry["bytes"]) and file in expected:
                self.locate(segment, expected[file], position)

    def locate(self, segment: Segment, field: str, position: int) -> None:
        """Which views and rows of a damaged file can't be read any more."""
        path = segment.array(field)
        try:
            array = zarr.open_array(self.store.zarr(read_only=True), path=path, mode="r")
        except Exception as e:
            # Metadata may be what is damaged; the file itself is on the list already.
            self.problem(path, f"can't be opened: {type(e).__name__}")
            return
        rows = array.chunks[2]
        for v, view in enumerate(segment.views):
            for start in range(0, array.shape[2], rows):
                try:
                    np.asarray(array[v, position, start : start + rows])
                except Exception as e:
                    what = f"view {view} rows {start}:{start + rows} can't be read: {type(e).__name__}"
                    self.problem(segment.chunk(field, position), what)
