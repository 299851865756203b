"""What the commands of `kdpipe cache` share."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from kdpipe._util.redact import redact
from kdpipe.cache.tools.copy import OnTask
from kdpipe_stages.progress import Progress


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json to a command, which takes it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def log(report: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as text, or as JSON."""
    click.echo(redact(json.dumps(report) if as_json else text))


@contextmanager
def showing(label: str) -> Iterator[OnTask]:
    """A bar, or lines now and then, for a number of tasks that is only known while it runs."""
    progress: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(total, "tasks", label)
        if done:
            progress.advance(1)

    try:
        yield show
    finally:
        if progress is not None:
            progress.close()
