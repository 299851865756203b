"""Reading images block by block: one contiguous range each, checked against the index when first read or fetched."""

import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from pathlib import Path

from kdpipe._util.files import open_regular
from kdpipe.errors import IndexFileError, ShardError
from kdpipe.shards import remote
from kdpipe.shards.index import Index, Shard
from kdpipe.shards.sources import is_local

_MOVED = (
    "Index the shards where they are now and pass that index: caches made from them stay valid; or pass where they are "
    "by kdpipe --shard-urls"
)

# Each map holds a file descriptor; a process may have 1,024.
_OPEN_SHARDS = 64


class BlockReader:
    """Encoded images of an index, by block or by row.

    Opens files on first use, keeps the last ones mapped, and may be pickled, forked, and used from several
    threads. Images are views of the map: they stay valid after `close`.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._maps: OrderedDict[str, memoryview] = OrderedDict()
        self._checked: set[int] = set()

    def __getstate__(self) -> Index:
        return self.index

    def __setstate__(self, index: Index) -> None:
        self.__init__(index)  # type: ignore[misc]

    def read(self, block: int) -> list[memoryview]:
        """The encoded images of `index.rows(block)`, in order.

        Raises:
            ShardError: the shard can't be read, or its bytes are not those that were indexed.
            IndexFileError: the index is damaged.
        """
        index = self.index
        shard = index.shards[int(index.block_shard[block])]
        start, stop = int(index.block_start[block]), int(index.block_stop[block])
        rows = slice(int(index.block_first[block]), int(index.block_first[block + 1]))
        starts, sizes = index.image_start[rows].tolist(), index.image_size[rows].tolist()
        if any(size < 1 or at < start or at + size > stop for at, size in zip(starts, sizes, strict=True)):
            raise IndexFileError("the index is damaged: an image outside of its block", where=index.path)
        url = index.url(shard)
        data = self._bytes(shard, url, start, stop)
        # What is fetched again may be other bytes than what was checked; a map isn't likely to be.
        if block not in self._checked or not is_local(url):
            self._check(data, url, block, start, stop)
        return [data[at - start : at - start + size] for at, size in zip(starts, sizes, strict=True)]

    def image(self, row: int) -> memoryview:
        """The encoded image of one row; the first time, its whole block is read and checked.

        Raises:
            ShardError, IndexFileError: as `read`.
        """
        index = self.index
        block = index.block_of(row)
        if block not in self._checked:
            return self.read(block)[row - int(index.block_first[block])]
        start, size = int(index.image_start[row]), int(index.image_size[row])
        shard = index.shards[int(index.block_shard[block])]
        return self._bytes(shard, index.url(shard), start, start + size)

    def close(self) -> None:
        """Let go of the files; the next read opens them again."""
        with self._lock:
            self._maps.clear()

    def _check(self, data: memoryview, url: str, block: int, start: int, stop: int) -> None:
        if hashlib.sha256(data).digest() != self.index.block_digest[block].tobytes():
            where = f"{url}, block {block}, bytes {start} to {stop}"
            raise ShardError("the shard has changed since it was indexed", where=where, do="Index the shards again")
        self._checked.add(block)

    def _bytes(self, shard: Shard, url: str, start: int, stop: int) -> memoryview:
        if not is_local(url):
            return _fetch(shard, url, start, stop)
        if self._pid != os.getpid():  # forked, perhaps while another thread held the lock
            self._fresh()
        with self._lock:
            data = self._maps.get(url)
            if data is None:
                data = self._maps[url] = _map(shard, url)
                if len(self._maps) > _OPEN_SHARDS:
                    self._maps.popitem(last=False)
            else:
                self._maps.move_to_end(url)
        return data[start:stop]


def _map(shard: Shard, url: str) -> memoryview:
    try:
        with open_regular(Path(url)) as file:
            size = os.fstat(file.fileno()).st_size
            if size == shard.size:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise ShardError("the shard is not where it was indexed", where=url, do=_MOVED) from error
    except OSError as error:
        raise ShardError(f"the shard can't be read ({error.strerror or error})", where=url) from error
    what, found = "the shard has changed since it was indexed", f"{size} bytes"
    raise ShardError(what, where=url, found=found, allowed=f"{shard.size} bytes", do="Index the shards again")


def _fetch(shard: Shard, url: str, start: int, stop: int) -> memoryview:
    try:
        return remote.read_range(url, shard.size, start, stop)
    except remote.Missing as error:
        raise ShardError("the shard is not where it was indexed", where=url, do=_MOVED) from error
