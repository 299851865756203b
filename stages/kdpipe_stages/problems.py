"""What is bad in a set, on the terminal: all of it before the error, or what was left out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from kdpipe._util.redact import showable
from kdpipe.shards.problems import MOST, Problems


@contextmanager
def listed_problems() -> Iterator[None]:
    """Print every problem that an error is about; the error itself is printed as others are."""
    try:
        yield
    except Problems as error:
        for line in error.lines():
            click.echo(f"  {line}", err=True)
        raise


def print_skipped(rows: Sequence[tuple[str, str]], file: str) -> None:
    """A table of what was left out and why.

    Args:
        rows: what, and why.
        file: the JSON file that has all of them.
    """
    if not rows:
        return
    click.echo(f"left out: {len(rows)}, listed in {file}", err=True)
    shown = [(showable(what), showable(why)) for what, why in rows[:MOST]]
    width = max(len(what) for what, _ in shown)
    for what, why in shown:
        click.echo(f"  {what:{width}}  {why}", err=True)
    if len(rows) > MOST:
        click.echo(f"  and {len(rows) - MOST} more", err=True)
