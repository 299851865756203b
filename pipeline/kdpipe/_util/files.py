"""What readers and writers of files need: no waiting for pipes, forcing bytes to disk, being the only writer."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # no such locks on this system: writers are trusted to keep apart
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


def fsync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """A file for reading that is a file: opening a pipe would wait for its writer, and a device never ends.

    Raises:
        OSError: it can't be opened, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, most: int) -> bytes:
    """A file of at most so many bytes.

    Raises:
        OSError: as `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"{size} bytes, at most {most} are read")
        return file.read(size)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Where to write a file, which appears at `path` at the end, whole or not at all. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class FolderLock:
    """The right to write to a folder, which ends with the process, however that ends.

    It is the folder itself that is locked, so no file is left behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @staticmethod
    def works(path: Path) -> bool:
        """Whether a folder can be locked: not on every system, and not on every file system.

        Raises:
            OSError: the folder can't be opened.
        """
        if fcntl is None:
            return False
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def take(self, *, shared: bool = False) -> bool:
        """Hold the lock until `release`; False if another process holds it.

        Args:
            shared: beside others who share it, against those who don't.

        Raises:
            OSError: the folder can't be opened.
        """
        if fcntl is None or self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDONLY)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # a file system without locks
            os.close(descriptor)
            return True
        self._descriptor = descriptor
        _held.add(descriptor)
        return True

    def share(self) -> None:
        """Let others who share it in beside this one."""
        if fcntl is not None and self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release it; no effect if it isn't held."""
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    # A loader's workers outlive a killed run by seconds; without this they would hold its lock so long.
    os.register_at_fork(after_in_child=_forget)
