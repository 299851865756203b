"""The arrays of an index: memory maps whose contents are compared with their digests before they are used.

What grows with the blocks is checked when the index is opened, which costs next to nothing. What grows with the
samples is read through once in a process, when it is first used. Then nothing depends on a byte that isn't the
one that was written; and since a digest doesn't prove who wrote it, numbers are checked against each other too.
"""

from pathlib import Path
from typing import Any

import numpy as np

from kdpipe._util.files import open_regular
from kdpipe._util.fingerprint import file_sha256
from kdpipe.errors import IndexFileError
from kdpipe.shards.document import DTYPES, MAX_CLASSES

_AGAIN = "Make it again by `kdpipe index --overwrite`"
_BY_BLOCK = tuple(name for name in DTYPES if name.startswith("block_"))


class Arrays:
    """By name, read-only.

    Raises:
        IndexFileError: a file is missing, cut, damaged or another array.
    """

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self._path, self._document = path, document
        self._maps = {name: _map(path, name, tuple(document["arrays"][name]["shape"])) for name in DTYPES}
        self._sound: set[str] = set()
        for name in _BY_BLOCK:
            self._verify(name)
        self._check_blocks()

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._maps["labels"])

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._sound:
            self._verify(name)
            if name == "labels":
                self._check_labels()
        return self._maps[name]

    def verify(self) -> None:
        """Read every array through and compare its digest, whether that was done before or not."""
        self._sound.clear()
        for name in DTYPES:
            self[name]

    def damaged(self, name: str, why: str) -> IndexFileError:
        """The error for an array with impossible numbers."""
        where = self._path / f"{name}.npy"
        return IndexFileError(f"an array of the index is damaged: {why}", where=where, do=_AGAIN)

    def _verify(self, name: str) -> None:
        verify_file(self._path, self._document, name)
        self._sound.add(name)

    def _check_labels(self) -> None:
        labels = self._maps["labels"]
        most = int(self._document["num_classes"] or MAX_CLASSES) - 1
        if labels.min() < -1 or labels.max() > most:
            self._sound.discard("labels")
            raise self.damaged("labels", f"a label that is not between -1 and {most}")

    def _check_blocks(self) -> None:
        maps, shards = self._maps, self._document["shards"]
        first, rows = maps["block_first"], np.diff(maps["block_first"])
        if first[0] != 0 or first[-1] != self.samples or not self.samples:
            raise self.damaged("block_first", "its ends are not those of the samples")
        if rows.min() < 1 or rows.max() > self._document["block_size"]:
            raise self.damaged("block_first", "a block without samples, or with too many")
        owner = np.repeat(np.arange(len(shards)), [shard["blocks"] for shard in shards])
        if not np.array_equal(maps["block_shard"], owner):
            raise self.damaged("block_shard", "not the shards that index.json has")
        begins = [[shard["first"], shard["first_block"]] for shard in shards if shard["blocks"]]
        if any(shard["samples"] and not shard["blocks"] for shard in shards) or any(
            first[block] != row for row, block in begins
        ):
            raise self.damaged("block_first", "blocks don't begin where their shards do")
        sizes = np.array([shard["size"] for shard in shards], np.int64)[owner]
        start, stop = maps["block_start"], maps["block_stop"]
        if (start < 0).any() or (stop <= start).any() or (stop > sizes).any():
            raise self.damaged("block_stop", "a range of bytes outside of its shard")


def verify_file(path: Path, document: dict[str, Any], name: str) -> None:
    """Read an array's file through.

    Raises:
        IndexFileError: its digest is not the document's.
    """
    file = path / f"{name}.npy"
    if not file.is_file() or file_sha256(file) != document["arrays"][name]["sha256"]:
        raise IndexFileError("an array of the index is damaged", where=file, do=_AGAIN)


def _map(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A map of what the document describes; the file's own header has to agree and is never trusted."""
    file, dtype = path / f"{name}.npy", np.dtype(DTYPES[name])
    try:
        with open_regular(file) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("another version")
            found, by_columns, stored = np.lib.format.read_array_header_1_0(stream)
            start = stream.tell()
            size = stream.seek(0, 2)
            matches = (found, by_columns, stored) == (shape, False, dtype)
            if matches and size == start + int(np.prod(shape)) * dtype.itemsize:
                # A plain array over the map: memmap's own indexing is several times slower, row by row.
                return np.memmap(stream, dtype, "r", start, shape).view(np.ndarray)
    except Exception as error:  # NumPy evaluates the header, and raises whatever that does
        raise IndexFileError("an array of the index is missing or cut", where=file, do=_AGAIN) from error
    if matches:
        raise IndexFileError("an array of the index is missing or cut", where=file, found=f"{size} bytes", do=_AGAIN)
    expected = f"{dtype} {shape}"
    what = "an array of the index is not the one written"
    raise IndexFileError(what, where=file, found=f"{stored} {found}", allowed=expected, do=_AGAIN)
