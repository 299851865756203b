"""What the commands of `kdpipe cache` share."""

import json
from collections.abc import Callable
from typing import Any

import click

from kdpipe._util.redact import redact


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json to a command, which takes it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def log(report: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as text, or as JSON."""
    click.echo(redact(json.dumps(report) if as_json else text))
