"""Reading single chunks of a task's file, in Zarr v3's sharding format.

Zarr itself reads these files too, at several times the cost: each of its calls goes through an event loop and
a thread, and reads the file's chunk index anew. A loader reads one chunk of each field a block, so here the
index is read and checked once, and a chunk is one byte range, one checksum and one decompression.
"""

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline.cache.layout import Segment, fill_value
from pipeline.cache.store import Store
from pipeline.targets import ArrayField

_CRC = 4
_ABSENT = np.uint64(2**64 - 1)


class ChecksumError(ValueError):
    """Bytes that don't have the checksum stored with them."""


class TaskFile:
    """One field of one task: chunks (view, block of rows), checked whenever they are read.

    Args:
        store, name: the file.
        size: its bytes, as committed.
        segment, field: which array it is part of.
        rows: of the padded array.
        block: samples in a block.

    Raises:
        ChecksumError: the file's index of chunks is damaged.
    """

    def __init__(
        self, store: Store, name: str, size: int, segment: Segment, field: ArrayField, rows: int, block: int
    ) -> None:
        self._store, self._name, self._field = store, name, field
        self._rows = segment.rows_a_chunk(field.name, block)
        per_view = rows // self._rows
        length = 16 * len(segment.views) * per_view
        data = _checked(store.read_range(name, size - length - _CRC, size))
        self._index = np.frombuffer(data, "<u8").reshape(len(segment.views), per_view, 2)

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
            return np.full(shape, fill_value(field.dtype), field.dtype)
        data = _checked(self._store.read_range(self._name, int(offset), int(offset + length)))
        out = np.empty(shape, field.dtype)
        blosc.decompress(data, out)
        return out


def _checked(data: bytes) -> bytes:
    """Bytes without the crc32c at their end, which must be theirs."""
    body = data[:-_CRC]
    if len(data) < _CRC or google_crc32c.value(body) != int.from_bytes(data[-_CRC:], "little"):
        raise ChecksumError("the checksum is wrong")
    return body
