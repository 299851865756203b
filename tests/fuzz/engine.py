"""Many executions of one target, in processes of their own: a finding that ends its process ends nothing else."""

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.guard import Finding, Guard, guarded
from tests.fuzz.target import case, make

# An execution that takes longer is ended from outside: the alarm inside waits for code that isn't Python.
_PATIENCE = 60.0
_TELL = 1.0  # seconds between two tallies
_MEMORY = Path("/dev/shm")
_spawn = multiprocessing.get_context("spawn")
_at = _spawn.Value("q", -1, lock=False)  # the number under execution, for the process that watches this one


@dataclass
class Tally:
    """What came of executions; findings by signature, with the first input that shows it and how many do."""

    executions: int = 0
    accepted: int = 0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, number: int, outcome: bool | Finding, shown: Any = None) -> None:
        """Count one execution."""
        self.executions += 1
        if not isinstance(outcome, Finding):
            self.accepted += outcome
            return
        new = {**asdict(outcome), "number": number, "count": 0, **({} if shown is None else {"input": shown})}
        self.findings.setdefault(outcome.signature, new)["count"] += 1

    def join(self, other: "Tally") -> None:
        """Count the executions of another process."""
        self.executions += other.executions
        self.accepted += other.accepted
        for signature, new in other.findings.items():
            known = self.findings.setdefault(signature, {**new, "count": 0})
            known["count"] += new["count"]
            known["number"] = min(known["number"], new["number"])


def folder() -> Any:
    """A context with a folder in memory where there is such a thing."""
    return tempfile.TemporaryDirectory(prefix="kdpipe-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)


def execute(name: str, seed: int, numbers: Sequence[int], seconds: float | None = None) -> Iterator[Tally]:
    """Execute these inputs in this process, for so long at most once it has begun; a tally now and then."""
    with folder() as place, guarded():
        target = make(name, Path(place))
        guard, tally, told = Guard(target), Tally(), time.monotonic()
        until = told + (math.inf if seconds is None else seconds)
        for number in numbers:
            now = time.monotonic()
            if now > until:
                break
            if now > told + _TELL:
                yield tally
                tally, told = Tally(), now
            _at.value = number
            tally.add(number, guard.execute(case(target, name, seed, number)))
        yield tally


def run(name: str, seed: int, executions: int, processes: int = 2, seconds: float | None = None) -> Tally:
    """Execute inputs 0 to `executions` - 1 in several processes; what kills or blocks one is a finding of its input."""
    waiting = [range(first, executions, processes) for first in range(min(processes, executions))]
    total, running = Tally(), list[_Child]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(_Child(name, seed, waiting.pop(), seconds))
        for child in list(running):
            left = child.poll(total)
            if left is not None:
                running.remove(child)
                waiting += [numbers for numbers in left if len(numbers)]
        time.sleep(0.05)
    return total


def _child(name: str, seed: int, numbers: range, seconds: float | None, at: Any, pipe: Any) -> None:
    global _at  # noqa: PLW0603
    _at = at
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg and others write there what they think of their input
    try:
        for tally in execute(name, seed, numbers, seconds):
            pipe.send(tally)
        pipe.send(None)
    except Exception as e:
        pipe.send(f"{type(e).__name__}: {str(e)[:200]}")


class _Child:
    def __init__(self, name: str, seed: int, numbers: range, seconds: float | None) -> None:
        self._numbers, self._done, self._finished = numbers, 0, False
        self._at = _spawn.Value("q", -1, lock=False)
        self._pipe, other = _spawn.Pipe(duplex=False)
        self._process = _spawn.Process(target=_child, args=(name, seed, numbers, seconds, self._at, other), daemon=True)
        self._process.start()
        other.close()
        self._seen, self._since = -1, time.monotonic()

    def poll(self, total: Tally) -> list[range] | None:
        """Count what has come of it. When it has ended, what is left to do; None while it runs."""
        number, alive = self._at.value, self._process.is_alive()
        with suppress(EOFError, OSError):
            while not self._finished and self._pipe.poll():
                tally = self._pipe.recv()
                if isinstance(tally, str):
                    raise RuntimeError(f"the harness fails near input {number}: {tally}")
                self._finished = tally is None
                if tally is not None:
                    total.join(tally)
                    self._done += tally.executions
        if self._finished:
            self._process.join()
            return []
        if number != self._seen or number < 0:
            self._seen, self._since = number, time.monotonic()
        if alive and time.monotonic() - self._since < _PATIENCE:
            return None
        what = Finding("no end", "outside of Python", f"killed after {_PATIENCE:.0f} s")
        if not alive:
            what = Finding(f"end of the process, exit code {self._process.exitcode}", "", "")
        self._process.kill()
        self._process.join()
        if number < 0:
            raise RuntimeError(f"{what.kind}, before the first execution")
        total.add(number, what)
        # What it had not told yet is done again.
        at = self._numbers.index(number)
        return [self._numbers[self._done : at], self._numbers[at + 1 :]]
