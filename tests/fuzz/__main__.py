"""`python -m tests.fuzz`: damaged and hostile input for every parser."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.engine import Tally, folder, run
from tests.fuzz.guard import Finding, Guard, guarded
from tests.fuzz.report import report
from tests.fuzz.target import NAMES, case, make
from tests.reliability import keep, kept


def main(words: list[str] | None = None) -> int:
    """Exit code 1 if there are findings."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)} [default: all]")
    parser.add_argument("--executions", type=int, help="of each target [default: the target's own number]")
    parser.add_argument("--seconds", type=float, help="at most so long for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="N", help="execute input N of one target here, with its traceback")
    parser.add_argument("--input", type=Path, metavar="FILE", help="execute a file's bytes in the same way")
    parser.add_argument("--no-atheris", action="store_true", help="leave out the executions guided by coverage")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--document", type=Path, metavar="FILE.md", help="draw them into this document")
    asked = parser.parse_args(words)
    unknown = [name for name in asked.targets if name not in NAMES]
    if unknown:
        parser.error(f"no target {unknown[0]}; there are {', '.join(NAMES)}")
    names = asked.targets or list(NAMES)
    if asked.only is not None or asked.input is not None:
        if len(names) != 1:
            parser.error("--only and --input execute one input of one target: name it")
        return _one(names[0], asked.seed, asked.only, asked.input)
    return _all(names, asked)


def _one(name: str, seed: int, number: int | None, file: Path | None) -> int:
    with folder() as place, guarded():
        target = make(name, Path(place))
        data = file.read_bytes() if file else case(target, name, seed, number or 0)
        print(f"{len(data)} bytes: {data[:2000]!r}")
        outcome = Guard(target).execute(data)
        if isinstance(outcome, Finding):
            print(f"finding: {outcome.signature}: {outcome.detail}")
            target.run(data)  # for its traceback
            return 1
    print("accepted" if outcome else "refused")
    return 0


def _all(names: list[str], asked: argparse.Namespace) -> int:
    results: dict[str, Any] = {}
    for name in names:
        began = time.monotonic()
        mutated, guided = _mutated(name, asked), _guided(name, asked)
        results[name] = {
            "executions": mutated.executions,
            "accepted": mutated.accepted,
            "guided": guided.executions,
            "seconds": round(time.monotonic() - began, 1),
            "findings": {**mutated.findings, **guided.findings},
        }
        print(f"{name}: {_line(results[name])}", file=sys.stderr, flush=True)
    words = ["python -m tests.fuzz", *asked.targets]
    whole = asked.document and not asked.targets
    before = kept("fuzz", asked.document) if asked.document and asked.targets else None
    found = report(results, asked.seed, "make fuzz" if whole else " ".join(words), before)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    if asked.document:
        keep("fuzz", found, asked.document)
    for line in found["findings"]:
        print(line)
    return 1 if found["findings"] else 0


def _mutated(name: str, asked: argparse.Namespace) -> Tally:
    executions = asked.executions
    if executions is None:
        with folder() as place:
            executions = make(name, Path(place)).executions
    return run(name, asked.seed, executions, asked.processes, asked.seconds)


def _guided(name: str, asked: argparse.Namespace) -> Tally:
    if asked.no_atheris:
        return Tally()
    from tests.fuzz.guided import run as run_guided

    return run_guided(name, asked.seed, asked.executions, asked.seconds)


def _line(result: dict[str, Any]) -> str:
    rate = result["executions"] / max(result["seconds"], 0.1)
    counts = f"{result['executions']} executions, {result['guided']} guided, {result['accepted']} accepted"
    return f"{counts}, {rate:.0f}/s, {len(result['findings'])} findings"


if __name__ == "__main__":
    raise SystemExit(main())
