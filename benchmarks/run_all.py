"""All benches, each in a process of its own, one after the other: what one leaves behind can't slow the next."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from benchmarks import report
from benchmarks.benches import BENCHES, Bench, draw


def run_benches(benches: Sequence[Bench], index: str | None, out: str) -> list[str]:
    """Run benches and draw the document again after each, so that an interrupted run keeps what it has.

    Args:
        benches: those to run.
        index: of photographs, for benches that need some.
        out: the document, NAME.md.

    Returns:
        Names of the benches that failed.

    Raises:
        ConfigError: the document or its reports can't be read or written.
        IndexFileError: there is no such index.
    """
    names, known = [b.name for b in BENCHES], report.read(out)
    reports = {name: known[name] for name in names if name in known}
    if index is not None:
        from kdpipe.shards import Index

        Index.open(index)
    report.write(out, reports, draw)  # a place that can't be written is found now, not after an hour
    failed = []
    for number, bench in enumerate(benches, 1):
        given = index is not None and bench.photographs
        arguments = [*bench.arguments, *(["--index", str(index)] if given else [])]
        click.echo(f"[{number}/{len(benches)}] {shlex.join(['python', '-m', 'benchmarks', *arguments])}", err=True)
        began = time.monotonic()
        found = run_bench(arguments)
        taken = f"{time.monotonic() - began:.0f} s"
        if found is None:
            failed.append(bench.name)
            click.echo(f"{bench.name}: failed after {taken}; its section is unchanged", err=True)
            continue
        click.echo(f"{bench.name}: {taken}", err=True)
        if given:  # the index's path is not published
            found["command"] = shlex.join(["python", "-m", "benchmarks", *bench.arguments, "--index", "PHOTOS"])
        reports = {name: {**reports, bench.name: found}[name] for name in names if name in {*reports, bench.name}}
        report.write(out, reports, draw)
    return failed


def run_bench(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The report of `python -m benchmarks ARGS --json` in a process of its own, None if it failed; stderr is ours."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # and leaving the block waits until it has cleared up
            raise
    try:
        return json.loads(output) if process.returncode == 0 else None
    except ValueError:
        return None
