"""The moments of a command at which something can happen to it, counted, and what then happens.

A moment is an operation on a file below a folder (opening for writing, renaming, making, deleting, forcing to disk), a
batch before the teacher, a block being rendered, or a step of training.
"""

import errno
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import disk

_EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Larger than records, smaller than arrays, checkpoints and shards: some files fit and some don't.
_LARGEST = 2000


@dataclass(frozen=True)
class Fault:
    """What happens at which moment (from 1) to a process that works below `folder`.

    Attributes:
        once: a file that is made by the first process that comes to the moment; others are spared. Without it, every.
    """

    name: str
    at: int
    folder: str
    once: str | None = None


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST, _LARGEST))


def _jump(seconds: float) -> Callable[[], None]:
    """The wall clock is another from now on; time.monotonic isn't, as on a machine whose clock is set."""

    def jump() -> None:
        real = time.time
        time.time = lambda: real() + seconds  # type: ignore[assignment]

    return jump


FAULTS: dict[str, Callable[[], None]] = {
    "SIGKILL": _die,
    "SIGSTOP": _stop,
    "disk full": lambda: disk.fail(errno.ENOSPC, sync=False),
    "I/O error": lambda: disk.fail(errno.EIO, sync=True),
    "file too large": _limit_files,
    "clock 30 days ahead": _jump(30 * 86400),
    "clock 30 days back": _jump(-30 * 86400),
    "nothing": lambda: None,
}
# What a command that meets it has to name.
ERRORS = {"disk full": errno.ENOSPC, "I/O error": errno.EIO, "file too large": errno.EFBIG}


class Moments:
    """Counts this process's moments from `install` on, and has the fault happen at its own."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._root = fault, str(Path(fault.folder).resolve())
        self._lock = threading.RLock()
        self.count = 0

    def install(self) -> None:
        """Begin. There is no end: the process is thought to do nothing else."""
        import kdpipe.caching.task as task
        from kdpipe.teacher import Teacher
        from kdpipe.trainer.losses import LossLog

        sys.addaudithook(self._audit)
        os.fsync = self._counted(os.fsync)  # type: ignore[assignment]
        task.render_rows = self._counted(task.render_rows)
        Teacher._forward = self._counted(Teacher._forward)  # type: ignore[method-assign]
        LossLog.add = self._counted(LossLog.add)  # type: ignore[method-assign]

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(args[2], int) and args[2] & _WRITING and self._ours(args[0]):
                self.tick()
        elif event in _EVENTS and self._ours(args[0]):
            self.tick()

    def _ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._root)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            return function(*args, **kwargs)

        return counted

    def tick(self) -> None:
        """A moment."""
        with self._lock:
            self.count += 1
            if self.count == self._fault.at and self._first():
                FAULTS[self._fault.name]()

    def _first(self) -> bool:
        if self._fault.once is None:
            return True
        try:
            os.close(os.open(self._fault.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
