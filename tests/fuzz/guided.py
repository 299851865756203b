"""atheris: inputs guided by the coverage of pipeline/, of parsers that are Python of ours."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.engine import Tally, folder
from tests.fuzz.guard import Finding, Guard, guarded
from tests.fuzz.target import Target, make

KEPT = Path("runs/fuzz")  # inputs that showed something
# Minutes of a target at most, however slow its instrumented code.
_SECONDS = 240.0
# Seconds besides: imports with instrumentation, and the last input.
_GRACE = 300.0


def run(name: str, seed: int, executions: int | None, seconds: float | None, keep: Path | None = None) -> Tally:
    """Execute one target in a process of its own; inputs that show something are kept in a folder [KEPT].

    Raises:
        RuntimeError: the process failed otherwise than by a finding.
    """
    with folder() as place:
        out = Path(place) / "tally.json"
        words = [name, str(seed), str(-1 if executions is None else executions), str(seconds or _SECONDS), place]
        words.append(str(keep or KEPT))
        command = [sys.executable, "-m", "tests.fuzz.guided", *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=(seconds or _SECONDS) + _GRACE
            )
        except subprocess.TimeoutExpired as e:
            raise RuntimeError(f"atheris hangs on {name}, which no input of {name} explains") from e
        if not out.exists():
            raise RuntimeError(f"atheris failed on {name}: {done.stderr[-2000:]}")
        found = json.loads(out.read_text())
    tally = Tally(found["executions"], found["accepted"], found["findings"])
    if not found["ended"] and done.returncode:
        tally.add(0, Finding(f"end of the process, exit code {done.returncode}", "", done.stderr[-200:]))
    return tally


def _main(name: str, seed: int, executions: int, seconds: float, place: Path, keep: Path) -> None:
    import atheris
    import timm
    import zarr

    assert timm
    assert zarr  # what these import is large, and looking at it for what is to be instrumented takes a minute
    (place / "files").mkdir()
    # Before anything of it is imported otherwise.
    with atheris.instrument_imports(include=["kdpipe"], enable_loader_override=False):
        target: Target = make(name, place / "files")
    out = place / "tally.json"
    executions = target.guided if executions < 0 else min(executions, target.guided)
    tally = Tally()
    if not executions:
        _tell(out, tally, True)
        return
    corpus = place / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)
    guard = Guard(target)

    def execute(data: bytes) -> None:
        outcome = guard.execute(data)
        shown = None
        if isinstance(outcome, Finding) and outcome.signature not in tally.findings:
            keep.mkdir(parents=True, exist_ok=True)
            shown = keep / f"{name}-{seed}-{len(tally.findings)}"
            shown.write_bytes(data)
        tally.add(tally.executions, outcome, shown and str(shown))
        if tally.executions % 500 == 0 or tally.executions >= executions:
            _tell(out, tally, tally.executions >= executions)

    def mutate(data: bytes, size: int, one_seed: int) -> bytes:
        """Half of them by the target's own mutations, which libFuzzer then judges by their coverage."""
        rng = Random(one_seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, size)
        try:
            return target.mutate(rng, data, target.seeds)[:size]
        except Exception:  # a mutation of trees, given bytes that no parser makes one of
            return atheris.Mutate(data, size)

    flags = [f"-runs={executions}", f"-seed={seed + 1}", f"-max_total_time={seconds:.0f}", "-max_len=16384"]
    flags += ["-timeout=60", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup(["fuzz", *flags, str(corpus)], execute, custom_mutator=mutate)
    _tell(out, tally, False)
    with guarded():
        try:
            atheris.Fuzz()
        finally:
            _tell(out, tally, True)


def _tell(out: Path, tally: Tally, ended: bool) -> None:
    known: dict[str, Any] = {**vars(tally), "ended": ended}
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(known))
    partial.replace(out)


if __name__ == "__main__":
    _name, _seed, _executions, _limit, _place, _keep = sys.argv[1:]
    _main(_name, int(_seed), int(_executions), float(_limit), Path(_place), Path(_keep))
