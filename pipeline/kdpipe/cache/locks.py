"""Who may write to a cache at the same time: any number that add, none beside one that deletes.

A finished task's files appear whole, so any number of processes may do tasks of one cache. Three things need one
process at a time: deleting what interrupted writes left, which looks like what is being written just now; making the
cache and adding segments; and committing one task. Where a file system has `flock`s, these are the locks: they end with
their process. Elsewhere they are files, see `lease`, as long as the store can make a file only where there is none. A
store that can't do that has no locks: two processes that write to one cache there end in an error at best.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from kdpipe._util.files import FolderLock
from kdpipe.cache import lease as leases
from kdpipe.cache.lease import LOCKS, WRITING, Lease, Watch, living, present
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError

# Nobody is alone for long: it takes to open the cache, render its canaries and delete leftovers; or, where a cache was
# made on other devices, to find out how the teacher is run on these.
_PATIENCE = 900.0
_PAUSE = 0.1
_PAUSE_REMOTE = 0.5

T = TypeVar("T")
# Raises CacheError if a lock has ended before it was released.
Held = Callable[[], None]


class Writer:
    """The right to write, held by `writing`.

    Attributes:
        alone: no other process is writing; until `share`.
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
    """Be one of a cache's writers: alone if no other process writes, else beside them. By files one is never alone.

    Raises:
        CacheError: the folder can't be made, or somebody deletes or merges there for minutes.
    """
    folder = _flocked(store)
    if folder is None:
        with present(store):
            watch = Watch()
            _patiently(store, lambda: not store.conditional or not living(store, _ALONE, watch))
            yield Writer(None, alone=False)
        return
    lock = FolderLock(folder)
    with store.writing(""):
        alone = _patiently(store, lambda: _either(lock)) == "alone"
    writer = Writer(lock, alone)
    try:
        yield writer
    finally:
        if writer.alone:
            # Refused before anything was written: leave no trace.
            for empty in (folder / "commits", folder):
                with suppress(OSError):
                    empty.rmdir()
        lock.release()


@contextmanager
def adding(store: Store) -> Iterator[Held]:
    """Be the only writer that creates the cache or adds segments to it; others wait."""
    with _exclusive(store, "commits", "adding") as held:
        yield held


@contextmanager
def committing(store: Store, segment: str, shard: str, folder: str) -> Iterator[Held]:
    """Be the only one that commits this task; others wait, as long as its holder may be alive.

    Args:
        store: where.
        segment, shard: the task.
        folder: one of its own, for a `flock`. That doesn't end while its holder is stopped; after LEASE seconds who
            waits continues beside it, as with a lease.
    """
    with _exclusive(store, folder, f"tasks/{segment}/{shard}", lambda: leases.LEASE) as held:
        yield held


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Be the only process that writes, as who deletes must.

    Raises:
        CacheError: another process is writing, or the folder can't be made.
    """
    folder = _flocked(store)
    if folder is None:
        with _alone_by_files(store):
            yield
        return
    lock = FolderLock(folder)
    with store.writing(""):
        free = lock.take()
    if not free:
        raise _busy(store)
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            # Refused before anything was written: leave no trace.
            folder.rmdir()


_ALONE = f"{LOCKS}alone"


@contextmanager
def _alone_by_files(store: Store) -> Iterator[None]:
    lease = Lease(store, "alone")
    if not _taken(store, lease, lambda: lease.others_alive):
        yield
        return
    try:
        watch = Watch()
        while there := living(store, WRITING, watch):
            if any(watch.alive(name) for name in there):
                raise _busy(store)
            _pause(store)
        # Of processes that were killed: no other one is writing now.
        for name in store.files(LOCKS.rstrip("/")):
            if not name.startswith(f"{_ALONE}/"):
                store.remove(name)
        yield
    finally:
        lease.release()


@contextmanager
def _exclusive(store: Store, folder: str, name: str, beside: Callable[[], float] | None = None) -> Iterator[Held]:
    place = _flocked(store, folder)
    if place is None:
        lease = Lease(store, name)
        held = _taken(store, lease, lambda: False)
        try:
            yield lease.require if held else lambda: None
        finally:
            lease.release()
        return
    lock = FolderLock(place)
    with store.writing(folder):
        _patiently(store, lock.take, beside)
    try:
        yield lambda: None
    finally:
        lock.release()


def _flocked(store: Store, name: str = "") -> Path | None:
    """The folder to lock, made if need be; None where it is by files that one locks."""
    if store.local is None:
        return None
    folder = store.local / name
    with store.writing(name):
        folder.mkdir(parents=True, exist_ok=True)
        return folder if FolderLock.works(folder) else None


def _taken(store: Store, lease: Lease, hopeless: Callable[[], bool]) -> bool:
    """Wait for a lease; False where the store can't have any.

    Raises:
        CacheError: it is held for too long, or waiting is hopeless.
    """

    def attempt() -> bool:
        if not store.conditional or lease.take():
            return True
        if hopeless():
            raise _busy(store)
        return not store.conditional

    _patiently(store, attempt)
    return store.conditional


def _busy(store: Store) -> CacheError:
    return CacheError("another process is writing here", where=store, do="Wait until it has ended")


def _either(lock: FolderLock) -> str | None:
    return "alone" if lock.take() else "beside others" if lock.take(shared=True) else None


def _patiently(store: Store, attempt: Callable[[], T], beside: Callable[[], float] | None = None) -> T:
    """The first truthy result of an attempt to lock; or, after `beside()` seconds, the last one."""
    began = time.monotonic()
    while not (got := attempt()):
        if beside is not None and time.monotonic() - began > beside():
            break
        if time.monotonic() - began > _PATIENCE:
            raise _busy(store)
        _pause(store)
    return got


def _pause(store: Store) -> None:
    time.sleep(_PAUSE_REMOTE if store.local is None else _PAUSE)
