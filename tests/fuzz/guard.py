"""What bounds an execution: time, memory, and code that input names. And what makes it fast: no disk."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.fuzz.mutate import ESCAPED
from tests.fuzz.target import Target

# Of the processor, and by the clock: the machine may have other work.
SECONDS, CLOCK = 5.0, 30.0
GROWTH = 2**30
_BAIT = "tests.fuzz.bait"
_OURS = ("/pipeline/", "/stages/")


class TooLong(BaseException):
    """Raised inside of an execution that takes too long."""


@dataclass(frozen=True)
class Finding:
    """A failure: what it is, where in the code, and for how long or how large."""

    kind: str
    place: str
    detail: str

    @property
    def signature(self) -> str:
        """Equal for failures that are likely one."""
        return f"{self.kind} at {self.place}"


class Guard:
    """Executes a target on inputs, one at a time."""

    def __init__(self, target: Target, seconds: float = SECONDS, growth: int = GROWTH, clock: float = CLOCK) -> None:
        self._target, self._seconds, self._growth, self._clock = target, seconds, growth, clock
        # Else the peak of what this process did before would hide what is to come.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._base = _peak()

    def execute(self, data: bytes) -> bool | Finding:
        """Whether an input is accepted, or what is wrong."""
        began = time.process_time()
        accepted, found = False, None
        try:
            with alarmed(self._seconds, self._clock):
                self._target.run(data)
            accepted = True
        except self._target.refusals as e:
            if len(str(e).splitlines()) > 1:
                found = _finding("a message of several lines", e)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:
            found = _finding(type(e).__name__, e)
        return found or self._bounded(time.process_time() - began) or accepted

    def _bounded(self, seconds: float) -> Finding | None:
        if _BAIT in sys.modules:
            del sys.modules[_BAIT]
            return Finding("import of what input names", "", "")
        if os.path.lexists(ESCAPED):
            Path(ESCAPED).unlink()
            return Finding("a file outside of every folder", ESCAPED, "")
        if seconds > self._seconds:  # the alarm waits for code that isn't Python
            return Finding("too long", "outside of Python", f"{seconds:.1f} s")
        grown = _peak() - self._base
        if grown > self._growth:
            self._base += grown
            return Finding("too much memory", "", f"{grown / 2**30:.1f} GiB")
        return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _finding(kind: str, error: BaseException) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(part in f.filename for part in _OURS)] or list(frames)
    last = ours[-1]
    place = f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.name}"
    return Finding(kind, place, " ".join(str(error).split())[:160])


def _stop(*_: Any) -> None:
    raise TooLong("no end")


@contextmanager
def alarmed(seconds: float, clock: float) -> Iterator[None]:
    """Raise `TooLong` after so many seconds of the processor, or by the clock; where `guarded`."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, clock)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def guarded() -> Iterator[None]:
    """A process that fuzzes: alarms, an end to memory before the machine's, nothing forced to disk."""
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    before = {number: signal.signal(number, _stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + 3 * GROWTH, limits[1]))
    try:
        # No name from a file leads to the network.
        with patch("os.fsync", nothing), patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        for number, handler in before.items():
            signal.signal(number, handler)


def _data() -> int:
    """Bytes of the process's data, as the limit counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")
