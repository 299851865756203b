"""Reading single chunks of a task's file, in Zarr v3's sharding format.

Zarr itself reads these files too, at several times the cost: each of its calls goes through an event loop and
a thread, and reads the file's chunk index again. A loader reads one chunk of each field a block, so here the
index is read and checked once, and a chunk is one byte range, one checksum and one decompression.
"""

import math
import struct

import google_crc32c
import numpy as np
from numcodecs import blosc

from kdpipe.cache.layout import Segment, fill_value
from kdpipe.cache.store import Store
from kdpipe.targets import ArrayField

_CRC = 4
# Of blosc: version, flags with the codec's number in the upper three bits, bytes before, of a block, and after.
_HEADER, _ZSTD = 16, 4
_ABSENT = np.uint64(2**64 - 1)


class ChecksumError(ValueError):
    """Bytes that don't have the checksum stored with them, or aren't a chunk of the format."""


class TaskFile:
    """One field of one task: chunks (view, block of rows), checked whenever they are read.

    Args:
        store, name: the file.
        size: its bytes, as committed.
        segment, field: which array it is part of.
        rows: of the padded array.
        samples: of the task's shard; all of them are in the file.
        block: samples in a block.

    Raises:
        ChecksumError: the file's index of chunks is damaged.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        size: int,
        segment: Segment,
        field: ArrayField,
        *,
        rows: int,
        samples: int,
        block: int,
    ) -> None:
        self._store, self._name, self._field = store, name, field
        self._rows, self._samples = segment.rows_a_chunk(field.name, block), samples
        per_view = rows // self._rows
        end = size - 16 * len(segment.views) * per_view - _CRC
        if end < 0:
            raise ChecksumError("its size is wrong: there is no room for its index of chunks")
        data = _checked(store.read_range(name, end, size))
        self._index = np.frombuffer(data, "<u8").reshape(len(segment.views), per_view, 2)
        there = self._index[self._index[..., 0] != _ABSENT]
        # Each alone first: sums of larger ones wrap around.
        inside = bool((there <= end).all() and (there.sum(axis=-1) <= end).all() and int(there[:, 1].sum()) <= end)
        if not inside:
            raise ChecksumError("its index of chunks is wrong: it names places beyond the file's end")

    def read(self, view: int, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of the view at position `view`: (stop - start, ...) in the stored dtype.

        Raises:
            ChecksumError: a chunk is damaged.
        """
        first = start // self._rows
        parts = [self._chunk(view, chunk) for chunk in range(first, -(-stop // self._rows))]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[start - first * self._rows : stop - first * self._rows]

    def _chunk(self, view: int, chunk: int) -> np.ndarray:
        field, shape = self._field, (self._rows, *self._field.shape)
        offset, length = self._index[view, chunk]
        if offset == _ABSENT:
            if chunk * self._rows < self._samples:
                raise ChecksumError("a chunk is missing")
            return np.full(shape, fill_value(field.dtype), field.dtype)
        return decoded(self._store.read_range(self._name, int(offset), int(offset + length)), shape, field.dtype)


def decoded(data: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array of a chunk's bytes: of this size, by blosc with zstd, and with a crc32c behind it.

    Raises:
        ChecksumError: it is anything else. No memory is allocated by sizes that it gives.
    """
    body, size = _checked(data), math.prod(shape) * np.dtype(dtype).itemsize
    sizes = struct.unpack("<III", body[4:_HEADER]) if len(body) >= _HEADER else None
    if sizes is None or (sizes[0], sizes[2]) != (size, len(body)) or body[2] >> 5 != _ZSTD:
        raise ChecksumError("its size or codec is wrong")
    out = np.empty(shape, dtype)
    try:
        blosc.decompress(body, out)
    except (RuntimeError, ValueError) as e:
        raise ChecksumError(f"it can't be decompressed: {e}") from e
    return out


def _checked(data: bytes) -> bytes:
    """Bytes without the crc32c at their end, which must be theirs."""
    body = data[:-_CRC]
    if len(data) < _CRC or google_crc32c.value(body) != int.from_bytes(data[-_CRC:], "little"):
        raise ChecksumError("its checksum is wrong")
    return body
