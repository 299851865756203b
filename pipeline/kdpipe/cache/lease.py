"""Locks of files where there are no `flock`s: object stores, and folders of file systems without them.

A lease is a numbered file that only one process can have made (`Store.put_new`), and a file beside it that its holder
rewrites while it lives. Who waits watches both by its own monotonic clock: a lease that hasn't changed for `LEASE`
seconds belongs to a process that was killed, and the next number is free. Clocks are never compared, so none has to be
right. A holder that was stopped for longer than that finds a higher number, and must stop.

    locks/<lease>/<number>.json         its owner
    locks/<lease>/<number>-beat.json    rewritten by its owner
    locks/writing/<owner>.json          one a process that writes, rewritten by it
"""

import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kdpipe.cache.sealed import seal
from kdpipe.cache.store import PARTIAL, Store
from kdpipe.errors import CacheError

LOCKS = "locks/"
WRITING = "locks/writing"
# After so many seconds without a change a holder is taken for dead; it renews several times in that time.
LEASE = 60.0
_RENEWALS = 6
_LOCK = re.compile(r"/(\d{6})\.json$")


class Watch:
    """What a waiting process has seen of files that others rewrite while they live."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._changed: set[str] = set()

    def dead(self, name: str, state: bytes) -> bool:
        """Whether nothing about `name` has changed for LEASE seconds; to be called repeatedly."""
        now = time.monotonic()
        known = self._seen.get(name)
        if known is None or known[0] != state:
            self._seen[name] = state, now
            if known is not None:
                self._changed.add(name)
        return now - self._seen[name][1] >= LEASE

    def alive(self, name: str) -> bool:
        """Whether it has changed since it was first seen."""
        return name in self._changed


class Lease:
    """An exclusive right that ends with `release`, or LEASE seconds after its holder was killed.

    Args:
        store: where.
        name: which: files below locks/NAME.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._folder = store, f"{LOCKS}{name}"
        self._watch = Watch()
        self._number = 0
        self._owner = owner()
        self._renewing: _Renewing | None = None

    @property
    def others_alive(self) -> bool:
        """Whether the holder was seen to renew it while this process waited."""
        return self._watch.alive(self._folder)

    def take(self) -> bool:
        """Hold it, if no other process does; whether it is held.

        Raises:
            CacheError: the store can't be written or read.
        """
        there = self._locks()
        last = max(there, default=0)
        if there:
            beat = self._store.read_if(self._file(last, "-beat"))
            if not self._watch.dead(self._folder, there[last] + (beat or b"")):
                return False
        number = last + 1
        if not self._store.put_new(self._file(number), self._owner):
            return False
        # Who made another number at the same moment sees this one, or is seen here.
        now = self._locks()
        others = {n: data for n, data in now.items() if n != number and there.get(n) != data}
        if now.get(number) != self._owner or others:
            self._remove(number)
            return False
        self._store.probe(self._file(number), self._owner)
        if not self._store.conditional:
            self._remove(number)
            return False
        for n in there:
            self._remove(n)
        self._number = number
        self._renewing = _Renewing(self._renew)
        return True

    def require(self) -> None:
        """Refuse to continue if the lease has ended, because this process was stopped for too long.

        Raises:
            CacheError: another process holds it, or may have held it.
        """
        there = self._locks()
        if max(there, default=0) != self._number or there[self._number] != self._owner:
            raise CacheError(
                f"this process didn't renew its lock for {LEASE:.0f} s, and another has taken it",
                where=f"{self._store}/{self._folder}",
                do="Repeat the command: finished tasks are kept",
            )

    def release(self) -> None:
        """Release it; no effect if it isn't held any more."""
        if self._renewing is None:
            return
        self._renewing.stop()
        self._renewing = None
        if self._store.read_if(self._file(self._number)) == self._owner:
            self._remove(self._number)

    def _renew(self, count: int) -> None:
        self._store.put(self._file(self._number, "-beat"), seal({"count": count}))

    def _locks(self) -> dict[int, bytes]:
        """The numbers that are there, with their owners."""
        found = {int(m[1]): name for name in self._store.files(self._folder) if (m := _LOCK.search(name))}
        read = {number: self._store.read_if(name) for number, name in found.items()}
        return {number: data for number, data in read.items() if data is not None}

    def _file(self, number: int, what: str = "") -> str:
        return f"{self._folder}/{number:06d}{what}.json"

    def _remove(self, number: int) -> None:
        for what in ("-beat", ""):
            self._store.remove(self._file(number, what))


@contextmanager
def present(store: Store) -> Iterator[None]:
    """Register this process as a writer, for those that need exclusive access."""
    who = owner()
    name = f"{WRITING}/{uuid.uuid4().hex}.json"
    store.put(name, who)
    renewing = _Renewing(lambda count: store.put(name, who + seal({"count": count})))
    try:
        yield
    finally:
        renewing.stop()
        with suppress(CacheError):  # it ends by itself, and the work is done
            store.remove(name)


def living(store: Store, folder: str, watch: Watch) -> list[str]:
    """Files below a folder of locks whose owners aren't known to be dead; one that is being written isn't there yet."""
    read = {name: store.read_if(name) for name in store.files(folder) if not name.endswith(PARTIAL)}
    return [name for name, data in read.items() if data is not None and not watch.dead(name, data)]


def owner() -> bytes:
    """Content of a file that is this holder's alone; the host and process are for people who look."""
    return seal({"owner": uuid.uuid4().hex, "host": platform.node(), "process": os.getpid()})


class _Renewing:
    """Calls `renew` with 1, 2, ... in a thread, several times in LEASE seconds, until `stop`."""

    def __init__(self, renew: Callable[[int], None]) -> None:
        self._renew, self._ended = renew, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(max(LEASE, 0.01) / _RENEWALS):
            count += 1
            with suppress(CacheError):  # the next one may succeed; if none does, `require` fails
                self._renew(count)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
