"""kdpipe in a child process that something happens to: forked from a server that has imported everything."""

import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import children
from tests.chaos.moments import Fault, Moments

_PATIENCE = 180.0
_STOPPED = 0.3
# What the server imports, unless other tests have started it already.
_MODULES = (
    *(
        "kdpipe_stages.cli",
        "kdpipe_stages.cache",
        "kdpipe_stages.cache_teacher",
        "kdpipe_stages.erf",
        "kdpipe_stages.evaluate",
        "kdpipe_stages.index",
    ),
    *(
        "kdpipe_stages.prepare",
        "kdpipe_stages.report",
        "kdpipe_stages.train_student",
        "kdpipe_stages.verify",
        "kdpipe_stages.view",
        "kdpipe_stages.inspect",
    ),
    *("s3fs", "distributed", "kdpipe.caching.cluster", "tests.chaos.moments", "tests.chaos.processes"),
)


@dataclass
class Ended:
    """How a command ended: exit code (negative: the signal), what it printed, the moments that it had."""

    code: int
    out: str
    err: str
    moments: int
    argv: Sequence[str] = ()

    @property
    def error(self) -> str:
        """The one line with which it refused; empty if it did something else."""
        lines = self.err.splitlines()
        one = len([line for line in lines if line.startswith("error: ")]) == 1
        return lines[-1] if self.code == 2 and one and lines[-1].startswith("error: ") else ""


@dataclass
class Running:
    """A command that runs."""

    process: Any
    notes: Path
    argv: Sequence[str]
    _ended: Ended | None = field(default=None, repr=False)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def children(self) -> list[psutil.Process]:
        """All processes below it."""
        return psutil.Process(self.pid).children(recursive=True) if self.alive() else []

    def kill(self) -> None:
        """End it and all below it, if they haven't."""
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.join()

    def wait(self, timeout: float = _PATIENCE) -> Ended:
        """Its end; one that stops itself is woken up after a while."""
        until = time.monotonic() + timeout
        while self.process.join(0.02) or self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(self.pid).status() == psutil.STATUS_STOPPED:
                    time.sleep(_STOPPED)
                    os.kill(self.pid, signal.SIGCONT)
            if time.monotonic() > until:
                self.kill()
                raise AssertionError(f"{' '.join(self.argv)} hangs\n{self._read('err')[-6000:]}")
        count = self._read("moments")
        return Ended(int(self.process.exitcode), self._read("out"), self._read("err"), int(count or 0), self.argv)

    def _read(self, name: str) -> str:
        path = self.notes / name
        return path.read_text(errors="replace") if path.is_file() else ""


def start(
    argv: Sequence[object],
    notes: Path,
    fault: Fault | None = None,
    env: Mapping[str, str] | None = None,
    stdout: str | None = None,
) -> Running:
    """Start a kdpipe command; what it prints is kept in `notes`, or goes to the file `stdout`."""
    notes.mkdir(parents=True, exist_ok=True)
    children.preload(*_MODULES)
    words = [str(word) for word in argv]
    return Running(children.start(_enter, words, str(notes), fault, dict(env or {}), stdout), notes, words)


def run(argv: Sequence[object], notes: Path, fault: Fault | None = None, **how: Any) -> Ended:
    """Start a command and wait for its end."""
    return start(argv, notes, fault, **how).wait()


@contextlib.contextmanager
def running(argv: Sequence[object], notes: Path, fault: Fault | None = None, **how: Any) -> Iterator[Running]:
    """A command that is gone when the context ends, with all below it."""
    one = start(argv, notes, fault, **how)
    try:
        yield one
    finally:
        one.kill()


def _enter(argv: list[str], notes: str, fault: Fault | None, env: dict[str, str], stdout: str | None) -> None:
    for number, path in enumerate((os.devnull, stdout or f"{notes}/out", f"{notes}/err")):
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if path.startswith(notes) else 0), 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.update(env)
    import dask
    import torch

    from kdpipe_stages.cli import main

    dask.config.refresh()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    sys.argv = ["kdpipe", *argv]
    moments = Moments(fault) if fault else None
    if moments:
        moments.install()
    code = 1
    # A command that hangs tells where.
    faulthandler.dump_traceback_later(_PATIENCE - 20)
    try:
        main()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        if moments:
            Path(notes, "moments").write_text(str(moments.count))
    try:
        sys.stdout and sys.stdout.flush()
    except OSError:
        # What Python does at its end.
        print("Exception ignored while flushing sys.stdout", file=sys.stderr)
        code, sys.stdout = 120, None
    # Threads are waited for, as at the end of any process.
    sys.exit(code)
