"""Where a cache's bytes live: a local folder or an fsspec URL, with the few operations the protocol needs.

On a local disk a file appears whole or not at all (temporary name, fsync, rename, fsync of the folder). On an
object store a put is atomic by itself. What must be written once is written by `put_new`, which never replaces a file.

Only `Store.path` makes paths of names, wherever the names are from: it takes those that the layout has, and follows no
link out of the cache.
"""

import inspect
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numcodecs.blosc
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.dircache import DirCache

from kdpipe._util.files import fsync
from kdpipe.cache import names
from kdpipe.errors import CacheError, CorruptionError, KdpipeError

# Blosc's worker threads append their parts as they finish, which makes the bytes depend on timing.
numcodecs.blosc.use_threads = False

PARTIAL = ".partial"
# A file that is there when it is to be made, gone when it is to be read, and so on.
_ATTEMPTS = 20


class Store:
    """Byte access to one cache by paths relative to its root, with forward slashes.

    Attributes:
        url: as given; `local`: its folder, None behind a URL.
        conditional: whether of several processes that make one file at the same moment exactly one succeeds. False
            also for a store that accepts such a request and replaces the file; see `probe`.
    """

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
        self._read: dict[str, str] = {}  # paths of files of which ranges were read
        self.conditional = self.local is not None or _creates(self._fs)
        self._probed = False
        if isinstance(getattr(self._fs, "dircache", None), DirCache):
            # Listings are kept for the process's life otherwise: what another client wrote or deleted since isn't seen.
            self._fs.dircache.use_listings_cache = False
            self._fs.invalidate_cache()

    def __str__(self) -> str:
        return self.url

    def path(self, name: str, *, unlisted: bool = False, link: bool = False) -> str:
        """Absolute path of a file or folder in fsspec's form.

        Args:
            name: relative to the root, which is the empty name.
            unlisted: whether it may be one that the layout doesn't have, as `files` lists them.
            link: whether it may itself be a link out of the cache, as what is deleted may.

        Raises:
            CorruptionError: it is no such name, or a link leads out of the cache.
        """
        if not (names.is_plain(name) if unlisted else names.is_file(name) or names.is_folder(name)):
            raise names.refusal(self, name)
        if not name:
            return self._root
        if self.local is not None:
            self._require_inside(name.split("/")[: -1 if link else None])
        return f"{self._root}/{name}"

    def _require_inside(self, parts: list[str]) -> None:
        """Refuse links that lead out of the cache; its root may be one."""
        path = self._root
        for part in parts:
            path = f"{path}/{part}"
            if os.path.islink(path):
                root, target = os.path.realpath(self._root), os.path.realpath(path)
                if os.path.commonpath([root, target]) != root:
                    raise CorruptionError(
                        "a link leads out of the cache",
                        where=path,
                        found=names.shown(target),
                        do="Don't use this cache if you have not made the link; else put the files in its place",
                    )

    def _file(self, name: str) -> str:
        """Path of a file that is to be read: of a pipe or a device reading would never end."""
        path = self.path(name)
        if self.local is not None and os.path.exists(path) and not os.path.isfile(path):
            raise CorruptionError("not a regular file", where=f"{self}/{name}", do="Don't use this cache")
        return path

    def read(self, name: str, most: int | None = None) -> bytes:
        """All bytes of a file, which may have no more than `most`.

        Raises:
            CacheError: it is missing, can't be read or is larger.
        """
        data = self.read_if(name, most)
        if data is None:
            raise CacheError("a file of the cache is missing", where=f"{self}/{name}")
        return data

    def read_if(self, name: str, most: int | None = None) -> bytes | None:
        """As `read`; None if it is not there."""
        path = self._file(name)
        try:
            # One byte more than may be there shows it, without a request for the size first.
            data = bytes(self._fs.cat_file(path) if most is None else self._fs.cat_file(path, start=0, end=most + 1))
        except FileNotFoundError:
            return None
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e
        if most is not None and len(data) > most:
            raise CorruptionError("larger than any such file", where=f"{self}/{name}", allowed=f"{most} bytes")
        return data

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file.

        Raises:
            CacheError: it is missing or can't be read.
        """
        if (path := self._read.get(name)) is None:  # a loader reads thousands of ranges of a file
            path = self._read[name] = self._file(name)
        try:
            if self.local is None:
                return bytes(self._fs.cat_file(path, start=start, end=stop))
            handle = os.open(path, os.O_RDONLY)
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
        path = self.path(name)
        try:
            return bool(self._fs.exists(path))
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def size(self, name: str) -> int | None:
        """Bytes of a file, which may be an unlisted one; None if it is not there."""
        path = self.path(name, unlisted=True)
        try:
            return int(self._fs.size(path))
        except FileNotFoundError:
            return None
        except Exception as e:
            raise _unreadable(f"{self}/{name}", e) from e

    def files(self, name: str = "") -> list[str]:
        """Every file below a folder, relative to the root, sorted; hidden ones and leftovers included.

        Links are listed and not followed.

        Raises:
            CorruptionError: one has a name that could be taken for another place.
        """
        path, prefix = self.path(name), len(self._root.rstrip("/")) + 1
        try:
            if self.local is not None:
                found = list(_walk(path))
            else:
                self._fs.invalidate_cache()
                found = self._fs.find(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as e:
            raise _unreadable(str(self), e) from e
        listed = sorted(path[prefix:] for path in found)
        for one in listed:
            if not names.is_plain(one):
                raise names.refusal(self, one)
        return listed

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, and durably."""
        place = self.path(name)
        with self.writing(name):
            if self.local is None:
                self._fs.pipe_file(place, data)
                return
            path = Path(place)
            with _temporary(path, data) as temporary:
                temporary.replace(path)
            self.sync_folders(name)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file as `put` does unless there is one; whether the file that is there now has these bytes.

        Where `conditional` is False, a process that writes at the same moment may replace it: then what is there
        afterwards is compared.

        Raises:
            CacheError: it can't be written, or read where there is one.
        """
        for _ in range(_ATTEMPTS):
            if self.conditional:
                if self._create(name, data):
                    return True
            elif not self.exists(name):
                self.put(name, data)
            there = self.read_if(name)
            if there is not None:
                # A request that was repeated because its response was lost finds its own bytes.
                return there == data
        raise CacheError("can't be written: it comes and goes", where=f"{self}/{name}")

    def probe(self, name: str, data: bytes) -> None:
        """Find out whether the store is `conditional`, by a file that was just made and has these bytes."""
        if not self._probed and self.local is None and self.conditional:
            self.conditional = not self._create(name, data)
            self._probed = True

    def _create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; whether it was written. Clears `conditional` where that can't be had."""
        place = self.path(name)
        with self.writing(name):
            if self.local is None:
                return self._create_object(place, data)
            path = Path(place)
            with _temporary(path, data) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    return False
                except OSError:  # a file system without hard links
                    self.conditional = False
                    if path.exists():
                        return False
                    temporary.replace(path)
            self.sync_folders(name)
            return True

    def _create_object(self, place: str, data: bytes) -> bool:
        for _ in range(_ATTEMPTS):
            try:
                self._fs.pipe_file(place, data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as e:
                # S3's response to one of two requests at the same moment, before it is known which one comes first.
                response = getattr(e.__cause__, "response", None) or {}
                if response.get("Error", {}).get("Code") != "ConditionalRequestConflict":
                    raise
        return False

    def sync(self, *files: str) -> None:
        """Force written files and the folders above them to disk; object stores have nothing to do."""
        if self.local is None:
            return
        for name in files:
            fsync(Path(self.path(name)))
        self.sync_folders(*files)

    def sync_folders(self, *files: str) -> None:
        """fsync the folders from files' own up to the root, so that their names survive a power cut.

        Each is forced once; and above a folder whose own name this object has forced before, nothing is new.
        """
        if self.local is None:
            return
        forced: set[Path] = set()
        for name in files:
            folder = Path(self.path(name)).parent
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
        """Delete a file, which may be an unlisted one; of a link the link. Nothing if it has gone already.

        Raises:
            CacheError: it can't be deleted.
        """
        path = self.path(name, unlisted=True, link=True)
        self._named.clear()  # its folder may go next, and come again
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return
        except Exception as e:
            raise CacheError(
                f"can't be deleted: {_reason(e)}",
                where=f"{self}/{name}",
                do="Correct that, then repeat the command: finished tasks are kept",
            ) from e

    def sweep(self) -> list[str]:
        """Delete what interrupted writes left behind; returns their names."""
        left = [name for name in self.files() if name.endswith(PARTIAL)]
        for name in left:
            self.remove(name)
        return left

    def writing(self, name: str) -> "_Writing":
        """Context that turns the operating system's refusals into one line about this cache."""
        return _Writing(f"{self}/{name}")


@contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A new file beside `path` with these bytes, on disk; gone at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _creates(fs: AbstractFileSystem) -> bool:
    """Whether a file system has an own way to write a file that isn't there; fsspec's default looks, then writes."""
    ours, default = (
        (type(fs)._pipe_file, AsyncFileSystem._pipe_file)
        if isinstance(fs, AsyncFileSystem)
        else (type(fs).pipe_file, AbstractFileSystem.pipe_file)
    )
    return ours is not default and "mode" in inspect.signature(ours).parameters


def _walk(folder: str) -> Iterator[str]:
    """Paths of all that lies below a folder and is none itself."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry.path
                continue
            try:
                yield from _walk(entry.path)
            except FileNotFoundError:  # deleted since it was listed
                continue


def _unreadable(where: str, error: Exception) -> CacheError:
    """One line for whatever a file system raises; object stores have exceptions of their own."""
    return CacheError(f"can't be read: {_reason(error)}", where=where)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"


class _Writing:
    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, KdpipeError | AssertionError):
            raise CacheError(
                f"can't be written: {_reason(error)}",
                where=self._where,
                do="Free space or correct the permission, then repeat the command: finished tasks are kept",
            ) from error
