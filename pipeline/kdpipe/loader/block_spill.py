"""Open blocks of remote shards, on local disk: in memory they would be streams x window blocks of photographs."""

import os
import tempfile
import weakref
from collections.abc import Sequence

from kdpipe.errors import ShardError


class SpilledBlock:
    """Encoded images of one block, by place in it; each is read on request."""

    def __init__(self, fd: int, slot: int, places: list[tuple[int, int]]) -> None:
        self._fd, self.slot, self._places = fd, slot, places

    def __getitem__(self, at: int) -> bytes:
        start, size = self._places[at]
        return os.pread(self._fd, size, start)


class BlockSpill:
    """A nameless file in the system's temporary folder (TMPDIR), with one slot a block.

    It grows to the slots in use at a time and goes with the process. What is read back comes from the system's file
    cache, as a local shard's bytes do, and is trusted as they are.

    Args:
        slot: bytes of the largest block.
    """

    def __init__(self, slot: int) -> None:
        self._size, self._slots = slot, 0
        self._free: list[int] = []
        self._file = tempfile.TemporaryFile(prefix="kdpipe-", buffering=0)  # noqa: SIM115
        self.close = weakref.finalize(self, self._file.close)

    def put(self, images: Sequence[memoryview]) -> SpilledBlock:
        """Keep a block's images.

        Raises:
            ShardError: there is no room.
        """
        fresh = not self._free
        slot = self._slots if fresh else self._free.pop()
        self._slots += fresh
        at, places = slot * self._size, []
        for image in images:
            places.append((at, len(image)))
            at += self._write(image, at)
        return SpilledBlock(self._file.fileno(), slot, places)

    def drop(self, block: SpilledBlock) -> None:
        """Let a block go; its slot is the next one's."""
        self._free.append(block.slot)

    def _write(self, image: memoryview, at: int) -> int:
        done = 0
        try:
            while done < len(image):
                done += os.pwrite(self._file.fileno(), image[done:], at + done)
        except OSError as error:
            raise ShardError(
                f"blocks of remote shards can't be kept ({error.strerror or error})",
                where=tempfile.gettempdir(),
                found=f"block {self._slots} of {self._size} bytes",
                do="Set TMPDIR to a local disk with more room, or lower loader.streams or loader.window",
            ) from error
        return done
