"""Every bench, each in a process of its own, one after the other: what one leaves behind can't slow the next."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from benchmarks import book
from benchmarks.sections import Section


def run_benches(sections: Sequence[Section], shards: str | None, out: str) -> list[str]:
    """Run benches and draw the document anew after each, so that an interrupted run keeps what it has.

    Args:
        sections: those to run.
        shards: an index, for sections that need photographs.
        out: the document, NAME.md.

    Returns:
        Names of the sections whose bench failed.

    Raises:
        ConfigError: the document or its record can't be read or written.
        IndexFileError: there is no index at `shards`.
    """
    reports = book.read(out)
    if shards is not None:
        _check(shards)
    book.write(out, reports)  # a place that can't be written is found now, not after an hour
    failed = []
    for number, section in enumerate(sections, 1):
        given = shards is not None and section.photographs
        words = [*section.words, *(["--index", str(shards)] if given else [])]
        click.echo(f"[{number}/{len(sections)}] {shlex.join(['python', '-m', 'benchmarks', *words])}", err=True)
        began = time.monotonic()
        report = run_bench(words)
        taken = f"{time.monotonic() - began:.0f} s"
        if report is None:
            failed.append(section.name)
            click.echo(f"{section.name}: failed after {taken}; its section stays as it was", err=True)
            continue
        click.echo(f"{section.name}: {taken}", err=True)
        if given:  # where an index lies is nothing to publish
            report["command"] = shlex.join(["python", "-m", "benchmarks", *section.words, "--index", "PHOTOS"])
        reports[section.name] = report
        book.write(out, reports)
    return failed


def run_bench(words: Sequence[str]) -> dict[str, Any] | None:
    """The report of `python -m benchmarks WORDS --json` in a process of its own, None if it failed; stderr is ours."""
    command = [sys.executable, "-m", "benchmarks", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # and leaving the block waits until it has cleared up
            raise
    try:
        return json.loads(said) if process.returncode == 0 else None
    except ValueError:
        return None


def _check(shards: str) -> None:
    from kdpipe.shards import Index

    Index.open(shards)
