"""What goes with every bench's figures: when, by which command, on which machine, with which versions."""

import json
import platform
import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
from click.core import ParameterSource

from kdpipe._util.machine import cores

_PACKAGES = ("torch", "timm", "zarr", "numcodecs", "Pillow", "numpy", "distributed")


def report(figures: dict[str, Any], as_json: bool) -> None:
    """Print the figures of the bench that click is running, with their circumstances.

    Args:
        figures: by name; numbers, text, spreads (`median`, `min`, `max`) and tables of those.
        as_json: as one JSON document, else a line a figure.
    """
    name = str(click.get_current_context().info_name)
    whole = {"bench": name, **figures, **circumstances()}
    if as_json:
        click.echo(json.dumps(whole))
        return
    for key, value in whole.items():
        click.echo(f"{key}: {_shown(value)}")


def log(text: str) -> None:
    """Tell how far a long bench is, on stderr."""
    click.echo(text, err=True)


def circumstances() -> dict[str, Any]:
    """Date (UTC), command, machine and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(click.get_current_context()),
        "machine": f"{processor()}, {cores()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            # OpenCV is installed under one of four names.
            "opencv": cv2.__version__,
        },
    }


def _command(context: click.Context) -> str:
    """As a user types it: the options that were given, but for how to print."""
    command = ["python", "-m", "benchmarks", str(context.info_name)]
    for param in context.command.params:
        name = str(param.name)
        if name != "as_json" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = context.params[name]
            for each in value if isinstance(value, tuple) else (value,):
                command += [param.opts[0], str(each)]
    return shlex.join(command)


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if "median" in value:
        return f"{value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g})"
    return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())


def processor() -> str:
    """The processor's name as the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
