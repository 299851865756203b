"""Who may write to a cache at the same time: everybody who adds, nobody beside one who deletes.

A finished task's files appear whole and are the same whoever makes them, so any number of processes may do
tasks of one cache. Two things need one process at a time: deleting what interrupted writes left, which looks like what
is being written just now; and adding segments. On a local disk the locks are `flock`s, which end with their process.
An object store has none: there nothing is ever deleted on the way, and segments are added by put.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pipeline.cache.store import Store
from pipeline.errors import CacheError
from pipeline.files import FolderLock

# Nobody is alone for long: it takes to open the cache, render its canaries and delete leftovers; or, where a cache was
# made on other devices, to find out how the teacher is run on these.
_PATIENCE = 900.0
_PAUSE = 0.1

T = TypeVar("T")


class Writer:
    """The right to write, held by `writing`.

    Attributes:
        alone: nobody else is writing; until `share`.
    """

    def __init__(self, lock: FolderLock | None, alone: bool) -> None:
        self._lock, self.alone = lock, alone

    def share(self) -> None:
        """Let others write too."""
        if self._lock is not None:
            self._lock.share()
        self.alone = False


@contextmanager
def writing(store: Store) -> Iterator[Writer]:
    """Be one of a cache's writers: alone if nobody else is at it, else beside them.

    Raises:
        CacheError: the folder can't be made, or somebody deletes or merges there for minutes.
    """
    if store.local is None:
        yield Writer(None, alone=False)
        return
    lock = FolderLock(store.local)
    with store.writing(""):
        store.local.mkdir(parents=True, exist_ok=True)
        alone = _patiently(store, lambda: _either(lock)) == "alone"
    writer = Writer(lock, alone)
    try:
        yield writer
    finally:
        if writer.alone:
            # Refused before anything was written: leave no trace.
            for folder in (store.local / "commits", store.local):
                with suppress(OSError):
                    folder.rmdir()
        lock.release()


@contextmanager
def adding(store: Store) -> Iterator[None]:
    """Be the only writer that creates the cache or adds segments to it; others wait."""
    if store.local is None:
        yield
        return
    folder = Path(store.path("commits"))
    with store.writing("commits"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        _patiently(store, lock.take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Be the only process that writes, as who deletes must. Behind a URL another one is not seen.

    Raises:
        CacheError: another process is writing, or the folder can't be made.
    """
    if store.local is None:
        yield
        return
    lock = FolderLock(store.local)
    with store.writing(""):
        store.local.mkdir(parents=True, exist_ok=True)
        free = lock.take()
    if not free:
        raise _busy(store)
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            # Refused before anything was written: leave no trace.
            store.local.rmdir()


def _busy(store: Store) -> CacheError:
    return CacheError("another process is writing here", where=store, do="Wait until it has ended")


def _either(lock: FolderLock) -> str | None:
    return "alone" if lock.take() else "beside others" if lock.take(shared=True) else None


def _patiently(store: Store, attempt: Callable[[], T]) -> T:
    """The first truthy answer of an attempt to lock."""
    began = time.monotonic()
    while not (got := attempt()):
        if time.monotonic() - began > _PATIENCE:
            raise _busy(store)
        time.sleep(_PAUSE)
    return got
