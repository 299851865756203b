"""One shard scanned: its samples, blocks and digests as arrays."""

import hashlib
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe._util.files import open_regular
from kdpipe.errors import ShardError
from kdpipe.shards import remote
from kdpipe.shards.labels import LEFT_OUT, Rules
from kdpipe.shards.problems import MOST, raise_all
from kdpipe.shards.samples import BadSample, Group, Sample, clashes, examine, grouped
from kdpipe.shards.sources import is_local, name_of
from kdpipe.shards.tar import Damage, Member, UnusableShard, members


@dataclass(frozen=True)
class Scan:
    """What the index keeps of one shard; rows and bytes count from the shard's start."""

    name: str
    url: str
    size: int
    sha256: str
    keys: list[bytes]
    arrays: dict[str, np.ndarray]  # labels, image_start, image_size; block_rows, block_start, ..., block_content
    skipped: list[dict[str, Any]]  # shard, key, offset, reason
    left_out: int = 0  # samples that timm's alt_label leaves out
    unused: Counter[str] = field(default_factory=Counter)  # suffixes of members of unlabelled samples
    usable: bool = True  # False: nothing of it can be, and all of it was skipped


def scan(
    url: str, rules: Rules, block_size: int, skip_bad: bool = False, limit: int | None = None, name: str | None = None
) -> Scan:
    """Read one shard through: every header, every image, every digest; at most `limit` samples.

    Raises:
        ShardError: the shard can't be read; or, without `skip_bad`, it is damaged or a sample is bad; `Problems` for
            several of these.
    """
    name = name or name_of(url)
    try:
        with mapped(url) as data:
            return _scan(name, url, data, rules, block_size, skip_bad, limit)
    except (UnusableShard, Damage) as error:
        if not skip_bad:
            raise
        skipped = [{"shard": name, "key": "", "offset": 0, "reason": error.reason}]
        return Scan(name, url, 0, "", [], _arrays([], None), skipped, usable=False)


def _scan(
    name: str, url: str, data: mmap.mmap, rules: Rules, block_size: int, skip_bad: bool, limit: int | None
) -> Scan:
    read, skipped = _samples(data, url, rules, skip_bad, limit)
    if not read and not skipped and limit != 0:
        raise UnusableShard("the shard has no samples", where=url)
    found = [sample for sample in read if sample.label != LEFT_OUT]
    blocks = [found[at : at + block_size] for at in range(0, len(found), block_size)]
    with memoryview(data) as whole:
        sha256 = hashlib.sha256(whole).hexdigest()
    listed = [{"shard": name, **entry} for entry in sorted(skipped, key=lambda entry: entry["offset"])]
    unused = Counter(suffix for sample in found for suffix in sample.unused)
    keys = [sample.key.encode() for sample in found]
    arrays = _arrays(blocks, data)
    return Scan(name, url, len(data), sha256, keys, arrays, listed, len(read) - len(found), unused)


def _arrays(blocks: list[list[Sample]], data: mmap.mmap | None) -> dict[str, np.ndarray]:
    found = [sample for block in blocks for sample in block]
    spans = [_span(block, data) for block in blocks if data is not None]
    return {
        "labels": np.array([s.label for s in found], np.int32),
        "image_start": np.array([s.image_start for s in found], np.int64),
        "image_size": np.array([s.image_size for s in found], np.int64),
        "block_rows": np.array([len(block) for block in blocks], np.int64),
        "block_start": np.array([start for start, _ in spans], np.int64),
        "block_stop": np.array([stop for _, stop in spans], np.int64),
        "block_digest": _digests([_range_digest(span, data) for span in spans if data is not None]),
        "block_content": _digests([_content_digest(block, data) for block in blocks if data is not None]),
    }


def _span(block: list[Sample], data: mmap.mmap) -> tuple[int, int]:
    """The bytes that hold a block: where an image is a hard link, also the member before that it links to."""
    return min(min(s.start, s.image_start) for s in block), min(block[-1].stop, len(data))


@contextmanager
def mapped(url: str) -> Iterator[mmap.mmap]:
    """A shard as a read-only memory map; a remote one is fetched once, into a temporary file."""
    try:
        if is_local(url):
            with open_regular(Path(url)) as file:
                yield from _map(file.fileno(), url)
        else:
            with tempfile.TemporaryDirectory(prefix="kdpipe-") as folder:
                copy = Path(folder) / "shard.tar"
                _fetch(url, copy)
                with copy.open("rb") as file:
                    yield from _map(file.fileno(), url)
    except OSError as error:
        raise ShardError(f"the shard can't be read ({error.strerror or error})", where=url) from error


def _map(descriptor: int, url: str) -> Iterator[mmap.mmap]:
    if os.fstat(descriptor).st_size == 0:  # which can't be mapped
        raise Damage(url, 0, "the tar is empty", found="0 bytes", do="Copy or write it again")
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        yield data


def _fetch(url: str, path: Path) -> None:
    try:
        remote.download(url, path)
    except remote.Missing as error:
        raise ShardError("no such shard", where=url) from error


def _samples(
    data: mmap.mmap, url: str, rules: Rules, skip_bad: bool, limit: int | None
) -> tuple[list[Sample], list[dict[str, Any]]]:
    skipped: list[dict[str, Any]] = []
    groups, damage = _groups(data, url)
    if damage is not None:
        key = damage.key
        # Where it isn't known whether the cut took members of the last sample, the sample stays if it has what its
        # predecessor has.
        if groups and (groups[-1][0].key == key or (key is None and not _alike(groups[-2:]))):
            key = groups.pop()[0].key
        skipped.append({"key": key or "", "offset": damage.offset, "reason": damage.reason})
    torn = clashes(groups, url)
    errors: dict[str | int, BadSample] = {}  # a torn sample comes by more than once
    found: list[Sample] = []
    kept = 0
    for group in groups:
        if kept == limit or (not skip_bad and len(errors) == MOST):
            break
        try:
            if group[0].key in torn:
                raise torn[group[0].key]
            found.append(examine(group, data, url, rules))
            kept += found[-1].label != LEFT_OUT
        except BadSample as error:
            errors[error.key if group[0].key in torn else group[0].offset] = error
    if not skip_bad:
        raise_all([*errors.values(), *([] if damage is None else [damage])])
    skipped += [{"key": e.key, "offset": e.offset, "reason": e.reason} for e in errors.values()]
    return found, skipped


def _groups(data: mmap.mmap, url: str) -> tuple[list[Group], Damage | None]:
    sound: list[Member] = []
    try:
        for member in members(data, url):
            sound.append(member)  # what came before the damage is kept
    except Damage as damage:
        return grouped(sound), damage
    return grouped(sound), None


def _alike(groups: list[Group]) -> bool:
    return len(groups) == 2 and {m.suffix for m in groups[0]} == {m.suffix for m in groups[1]}


def _range_digest(span: tuple[int, int], data: mmap.mmap) -> bytes:
    with memoryview(data) as whole:
        return hashlib.sha256(whole[span[0] : span[1]]).digest()


def _content_digest(block: list[Sample], data: mmap.mmap) -> bytes:
    digest = hashlib.sha256()
    with memoryview(data) as whole:
        for sample in block:
            key = sample.key.encode()
            image = whole[sample.image_start : sample.image_start + sample.image_size]
            digest.update(len(key).to_bytes(4, "little") + key + hashlib.sha256(image).digest())
            image.release()
    return digest.digest()


def _digests(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
