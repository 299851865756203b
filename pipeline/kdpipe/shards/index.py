"""The index of a shard set: where every sample lies, what it is labelled, and the digests that identify it.

Arrays are memory maps: opening costs the same for a thousand samples and for fourteen million, and all the
processes of a machine share the pages. What is kept of a sample is compared with its digest when it is first used.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe._util.fingerprint import fingerprint
from kdpipe._util.redact import SHARD_URLS
from kdpipe.errors import IndexFileError, ShardError
from kdpipe.shards import layout
from kdpipe.shards.arrays import Arrays
from kdpipe.shards.sources import addresses


@dataclass(frozen=True)
class Shard:
    """One tar of the set. `name` is its identity; `url` only where it was when it was indexed, without secrets."""

    name: str
    url: str
    size: int
    sha256: str
    first: int  # its first row in the index
    samples: int
    first_block: int
    blocks: int


class Index:
    """Samples in a fixed order: row r is a sample, block b a run of rows that lie together in one shard.

    Attributes:
        labels: int32 (N,), -1 for an unlabelled sample.
        image_start, image_size: int64 (N,), the image's byte range in its shard's file.
        block_first: int64 (B + 1,), the first row of each block; its last entry is N.
        block_shard: int32 (B,), the number of the block's shard in `shards`.
        block_start, block_stop: int64 (B,), the block's byte range in its shard's file.
        block_digest: uint8 (B, 32), sha256 of that byte range.
        block_content: uint8 (B, 32), sha256 over its keys and images, without labels and tar headers.
    """

    def __init__(
        self, path: Path, document: dict[str, Any], arrays: Arrays, samples: int, urls: Mapping[str, str]
    ) -> None:
        """Use `Index.open`."""
        self.path, self._document, self._arrays, self._samples, self._urls = path, document, arrays, samples, urls
        blocks = int(np.searchsorted(arrays["block_first"], samples))
        self.block_first = arrays["block_first"]
        if samples < arrays.samples:
            self.block_first = np.append(arrays["block_first"][:blocks], samples)
        self.block_shard = arrays["block_shard"][:blocks]
        self.block_start = arrays["block_start"][:blocks]
        self.block_stop = arrays["block_stop"][:blocks]
        self.block_digest = arrays["block_digest"][:blocks]
        self.block_content = arrays["block_content"][:blocks]
        shards = [Shard(**entry) for entry in document["shards"]]
        self.shards: tuple[Shard, ...] = tuple(
            replace(s, samples=min(s.samples, samples - s.first), blocks=min(s.blocks, blocks - s.first_block))
            for s in shards
            if s.first < samples or samples == arrays.samples
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str], urls: Mapping[str, str] | None = None) -> "Index":
        """Open an index folder. Samples' arrays are compared with their digests when they are first used.

        Args:
            path: the folder.
            urls: where shards are now, by their names, user, password and query included; by default what the
                environment variable KDPIPE_SHARD_URLS names, in any form that `kdpipe index` takes. They are kept
                in memory, sent to workers, and never written or printed.

        Raises:
            IndexFileError: no index there, damaged, or of another format version.
            ShardError: KDPIPE_SHARD_URLS names nothing.
        """
        where = Path(path).absolute()
        document = layout.load(where)
        arrays = Arrays(where, document)
        if urls is None:
            urls = addresses(os.environ[SHARD_URLS]) if os.environ.get(SHARD_URLS) else {}
        names = {entry["name"] for entry in document["shards"]}
        return cls(where, document, arrays, arrays.samples, {k: url for k, url in urls.items() if k in names})

    def __len__(self) -> int:
        return self._samples

    def __repr__(self) -> str:
        return f"Index({self.path}, {len(self)} samples, {len(self.shards)} shards, {self.blocks} blocks)"

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[object, ...]]:
        # Pickled arrays would travel in full; the other process maps the same files.
        return _reopen, (self.path, self.digest, len(self), dict(self._urls))

    @cached_property
    def labels(self) -> np.ndarray:
        """See the class."""
        return self._arrays["labels"][: self._samples]

    @cached_property
    def image_start(self) -> np.ndarray:
        """See the class."""
        return self._arrays["image_start"][: self._samples]

    @cached_property
    def image_size(self) -> np.ndarray:
        """See the class."""
        return self._arrays["image_size"][: self._samples]

    def url(self, shard: Shard) -> str:
        """Where to read a shard, which may hold secrets: for reading alone."""
        return self._urls.get(shard.name, shard.url)

    @property
    def block_size(self) -> int:
        """The most samples a block has."""
        return int(self._document["block_size"])

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if it was given when the index was made."""
        value = self._document["num_classes"]
        return None if value is None else int(value)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, by number, if they are known."""
        names: list[str] | None = self._document.get("classes")
        return names

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self.block_shard)

    @property
    def bytes(self) -> int:
        """The size of all shard files together."""
        return sum(shard.size for shard in self.shards)

    @property
    def digest(self) -> str:
        """Of the index's own files; unlike `identity`, places and shard files' digests enter it."""
        return str(self._document["digest"])

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What was left out: shard, key, offset, reason; without a key it is the shard, or the rest of it."""
        return list(self._document["skipped"])

    @cached_property
    def unlabelled(self) -> int:
        """The number of samples without a label."""
        return int(np.count_nonzero(self.labels < 0))

    def key(self, row: int) -> str:
        """The `__key__` of one sample."""
        return self.keys(row, row + 1)[0]

    def keys(self, start: int, stop: int) -> list[str]:
        """The keys of rows start to stop - 1.

        Raises:
            IndexFileError: the index is damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        if start == stop:
            return []
        ends, whole = self._arrays["key_stop"], self._arrays["keys"]
        stops = ends[start:stop].tolist()
        begin = int(ends[start - 1]) if start else 0
        starts = [begin, *stops[:-1]]
        if begin < 0 or stops[-1] > len(whole) or any(a >= b for a, b in zip(starts, stops, strict=True)):
            raise self._arrays.damaged("key_stop", "a key outside of the keys, or without a letter")
        text = whole[begin : stops[-1]].tobytes()
        try:
            return [text[a - begin : b - begin].decode() for a, b in zip(starts, stops, strict=True)]
        except UnicodeDecodeError as error:
            raise self._arrays.damaged("keys", "a key that is not UTF-8") from error

    def rows(self, block: int) -> range:
        """The rows of a block."""
        return range(int(self.block_first[block]), int(self.block_first[block + 1]))

    def block_of(self, row: int) -> int:
        """The block a row is in."""
        return int(np.searchsorted(self.block_first, row, side="right")) - 1

    def shard_of(self, row: int) -> Shard:
        """The shard a row is in."""
        return self.shards[int(self.block_shard[self.block_of(row)])]

    @property
    def full(self) -> "Index":
        """The index without a limit."""
        return self.limit(None)

    def limit(self, n: int | None) -> "Index":
        """The first n samples, over the same memory maps; None for all of them, of a limited index too.

        Raises:
            IndexFileError: n is not positive.
        """
        total = self._arrays.samples
        if n is not None and n < 1:
            raise IndexFileError("an impossible limit", found=n, allowed=f"1 to {total}")
        return Index(self.path, self._document, self._arrays, total if n is None else min(n, total), self._urls)

    def shard_identity(self, shard: Shard, samples: int | None = None) -> dict[str, Any]:
        """What of a shard must match: its name, and digests of its first samples and of their labels.

        The digests cover whole blocks: a limited index and the full one agree on every block they share, and a view
        may be mixed with a sample of its block that is beyond the limit.
        """
        count = shard.samples if samples is None else samples
        last = int(np.searchsorted(self._arrays["block_first"], shard.first + count))
        content = self._arrays["block_content"][shard.first_block : last]
        labels = self._arrays["labels"][shard.first : self._arrays["block_first"][last]]
        return {
            "name": shard.name,
            "samples": count,
            "content": hashlib.sha256(content.tobytes()).hexdigest(),
            "labels": hashlib.sha256(labels.astype("<i4").tobytes()).hexdigest(),
        }

    def identity(self) -> dict[str, Any]:
        """What must match between an index and what was made from it. Paths never enter."""
        return {
            "block_size": self.block_size,
            "shards": [self.shard_identity(shard) for shard in self.shards],
        }

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of `identity()`."""
        return fingerprint(self.identity())

    def check_labels(self, num_classes: int) -> None:
        """Are all labels below `num_classes`?

        Raises:
            ShardError: naming the first that isn't.
        """
        wrong = np.flatnonzero(self.labels >= num_classes)
        if len(wrong):
            row = int(wrong[0])
            shard = self.shard_of(row)
            where = f"{shard.url}, sample {self.key(row)!r}, byte {int(self.image_start[row])}"
            do = f"Set the class count, or correct the labels ({len(wrong)} are out of range)"
            raise ShardError(
                "label out of range",
                where=where,
                found=int(self.labels[row]),
                allowed=f"0 to {num_classes - 1}",
                do=do,
            )

    def warnings(self) -> list[str]:
        """What a user should know before training on it: sorted labels, unlabelled and skipped samples."""
        found = []
        if self.unlabelled:
            line, unused = f"{self.unlabelled} of {len(self)} samples have no label", self._document.get("unused")
            if unused:
                line += f"; members not used: {listing(unused)}. --label-key names another place of labels"
                if any("." in suffix for suffix in unused):
                    line += "; keys end at the first dot of a file name"
            found.append(line)
        if self._document.get("left_out"):
            found.append(f"{self._document['left_out']} samples were left out: their alt_label is negative")
        runs, expected = _label_runs(np.asarray(self.labels))
        if expected >= 50 and runs < expected / 2:
            found.append(
                f"labels are sorted rather than shuffled: {runs} runs of equal labels where "
                f"about {round(expected)} are expected, so batches will not be balanced. "
                "Shuffle the samples when writing the shards"
            )
        if self.skipped:
            found.append(f"{len(self.skipped)} bad samples or shards were left out; {layout.DOCUMENT} lists them")
        return found

    def verify(self) -> None:
        """Read the index's arrays through and compare their digests.

        Raises:
            IndexFileError: at the first that differs.
        """
        self._arrays.verify()


def listing(unused: Mapping[str, int]) -> str:
    """Suffixes of members, the commonest first."""
    some = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f".{suffix} ({count})" for suffix, count in some[:8]) + (", ..." if len(some) > 8 else "")


def _label_runs(labels: np.ndarray) -> tuple[int, float]:
    """Runs of equal labels among labelled samples, and how many a random order has in the mean."""
    known = labels[labels >= 0]
    if len(known) < 2:
        return len(known), float(len(known))
    counts = np.unique(known, return_counts=True)[1].astype(np.float64)
    same = float((counts * (counts - 1)).sum()) / (len(known) * (len(known) - 1))  # of two drawn at random
    return 1 + int(np.count_nonzero(known[1:] != known[:-1])), 1 + (len(known) - 1) * (1 - same)


def _reopen(path: Path, digest: str, samples: int, urls: dict[str, str]) -> Index:
    index = Index.open(path, urls)
    if index.digest != digest:
        raise IndexFileError("the index was replaced while in use", where=path, do="Start again")
    return index.limit(samples)
