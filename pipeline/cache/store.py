"""Where a cache's bytes live: a local folder or an fsspec URL, with the few operations the protocol needs.

On a local disk a file appears whole or not at all (temporary name, fsync, rename, fsync of the folder). On an
object store a put is atomic by itself.
"""

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numcodecs.blosc
import zarr.abc.store
from zarr.storage import FsspecStore, LocalStore

from pipeline.errors import CacheError, KdpipeError
from pipeline.files import fsync

# Blosc's worker threads append their parts as they finish, which makes the bytes depend on timing.
numcodecs.blosc.use_threads = False

PARTIAL = ".partial"


class Store:
    """Byte access to one cache by paths relative to its root, with forward slashes."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = str(url).removeprefix("file://")
        self.local = Path(self.url) if "://" not in self.url else None
        if self.local is None:
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as e:
                raise CacheError(f"no way to such a URL: {e}", where=self.url) from e
        else:
            self._fs, self._root = fsspec.filesystem("file"), str(self.local.absolute())
        self._named: set[Path] = set()  # folders whose names are on disk

    def __str__(self) -> str:
        return self.url

    def zarr(self, read_only: bool) -> zarr.abc.store.Store:
        """The same place as a Zarr store."""
        if self.local is not None:
            return LocalStore(self.local, read_only=read_only)
        return FsspecStore.from_url(self.url, read_only=read_only)

    def path(self, name: str) -> str:
        """Absolute path of `name` as fsspec wants it."""
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            CacheError: it is missing or can't be read.
        """
        try:
            return self._fs.cat_file(self.path(name))
        except FileNotFoundError as e:
            raise CacheError("a file of the cache is missing", where=f"{self}/{name}") from e
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file.

        Raises:
            CacheError: it is missing or can't be read.
        """
        try:
            if self.local is None:
                return bytes(self._fs.cat_file(self.path(name), start=start, end=stop))
            handle = os.open(self.local / name, os.O_RDONLY)
            try:
                return os.pread(handle, stop - start, start)
            finally:
                os.close(handle)
        except FileNotFoundError as e:
            raise CacheError("a file of the cache is missing", where=f"{self}/{name}") from e
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        try:
            return bool(self._fs.exists(self.path(name)))
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        try:
            return int(self._fs.size(self.path(name)))
        except FileNotFoundError:
            return None
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def files(self, name: str = "") -> list[str]:
        """Every file below `name`, relative to the root, sorted; hidden ones and leftovers included."""
        prefix = len(self.path("").rstrip("/")) + 1
        try:
            self._fs.invalidate_cache()
            return sorted(path[prefix:] for path in self._fs.find(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as e:
            raise _unreadable(str(self), e) from e

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, and durably."""
        with self.writing(name):
            if self.local is None:
                self._fs.pipe_file(self.path(name), data)
                return
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self.sync_folders(name)

    def sync(self, *names: str) -> None:
        """Force written files and the folders above them to disk; object stores have nothing to do."""
        if self.local is None:
            return
        for name in names:
            fsync(self.local / name)
        self.sync_folders(*names)

    def sync_folders(self, *names: str) -> None:
        """fsync the folders from files' own up to the root, so that their names survive a power cut.

        Each is forced once; and above a folder whose own name this object has forced before, nothing is new.
        """
        if self.local is None:
            return
        forced: set[Path] = set()
        for name in names:
            folder = (self.local / name).parent
            while folder not in forced:
                fsync(folder)
                forced.add(folder)
                if folder in (self.local, folder.parent) or folder in self._named:
                    break
                folder = folder.parent
        self._named |= forced - {self.local}

    def sync_parent(self) -> None:
        """Force the name of the store itself to disk."""
        if self.local is not None:
            fsync(self.local.absolute().parent)

    def remove(self, name: str) -> None:
        """Delete a file; nothing if it has gone already."""
        self._named.clear()  # its folder may go next, and come again
        try:
            self._fs.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def sweep(self) -> list[str]:
        """Delete what interrupted writes left behind; returns their names."""
        left = [name for name in self.files() if name.endswith(PARTIAL)]
        for name in left:
            self.remove(name)
        return left

    def writing(self, name: str) -> "_Writing":
        """Context that turns the operating system's refusals into one line about this cache."""
        return _Writing(f"{self}/{name}")


def _unreadable(where: str, error: Exception) -> CacheError:
    """One line for whatever a file system raises; object stores have exceptions of their own."""
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return CacheError(f"can't be read: {reason}", where=where)


class _Writing:
    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, KdpipeError | AssertionError):
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise CacheError(
                f"can't be written: {reason}",
                where=self._where,
                do="Free space or mend the permission, then repeat the command: finished tasks are kept",
            ) from error
