"""Running `kdpipe` inside a test."""

from dataclasses import dataclass

import click
from click.testing import CliRunner

from kdpipe_stages.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def kdpipe(*args: object, group: click.Group = main) -> Result:
    """Run a command; anything but an orderly exit is an error of the test."""
    result = CliRunner().invoke(group, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def refused(*args: object, group: click.Group = main) -> str:
    """The one line with which a command refuses; exit code 2 and no traceback."""
    result = kdpipe(*args, group=group)
    assert result.code == 2, result
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.err
    assert result.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in result.err
    return lines[0]
