"""Faults of one process: killed, stopped, its disk failing, its clock set, at any moment of a command that writes."""

import random
import signal
from pathlib import Path

from tests.chaos import child, disk
from tests.chaos.moments import ERRORS, Fault
from tests.chaos.scene import Scene, differing, half_written, wrong_end
from tests.chaos.verdict import Finding, Run, Skipped

# A kill leaves their temporary file, whose name has the process in it: it may be another's who still writes.
_LEFTOVERS = ("index", "prepare", "view", "erf", "report", "cache-teacher")


def disturbed(scene: Scene, folder: Path, rng: random.Random, fault: str, command: str | None = None) -> Run:
    """Disturb a command, the given one or any, at a moment that is drawn; repeat it; compare."""
    if fault in ("disk full", "I/O error") and not disk.available():
        raise Skipped("this system has no seccomp filters")
    name = command or rng.choice(list(scene.commands))
    expected, moments = scene.undisturbed(name)
    at, out = rng.randint(1, moments), folder / "out"
    ended = scene.run(name, out, Fault(fault, at, str(out)))
    what = f"{name}, moment {at} of {moments}"
    if fault == "SIGKILL":
        if ended.code != -signal.SIGKILL:
            raise Finding(what, f"not killed: exit code {ended.code}: {ended.err}")
    elif fault in ERRORS:
        problem = wrong_end(ended, fault)
        left = [] if problem else half_written(out)
        if problem or left:
            raise Finding(what, problem or f"half-written: {', '.join(left)}")
    elif ended.code != 0:
        raise Finding(what, f"exit code {ended.code}: {ended.err}")
    done = scene.commands[name].leaves(out) == expected
    again = scene.run(name, out)
    # What is done already may be refused in a line: finished shards aren't made again, views that are gone don't go.
    if again.code != 0 and not (done and again.error):
        raise Finding(what, f"repeated: exit code {again.code}: {again.err}")
    found = scene.commands[name].leaves(out)
    if fault == "SIGKILL" and name in _LEFTOVERS:
        found = {path: data for path, data in found.items() if ".partial" not in path}
    if found != expected:
        raise Finding(what, f"differs from an undisturbed run: {differing(found, expected)[:5]}")
    return Run(what, "killed" if ended.code < 0 else f"exit code {ended.code}", ended.error)


def full_output(scene: Scene, folder: Path, rng: random.Random, command: str | None = None) -> Run:
    """The disk is full to which the standard output goes."""
    name = command or rng.choice(list(scene.printing))
    full = child.run(scene.printing[name], folder / "notes", stdout="/dev/full")
    problem = wrong_end(full, "disk full")
    if problem or full.code == 0:
        raise Finding(name, problem or "exit code 0 though nothing was printed")
    again = child.run(scene.printing[name], folder / "again")
    if again.code != 0 or not again.out:
        raise Finding(name, f"repeated: {again}")
    return Run(name, f"exit code {full.code}", full.error)
