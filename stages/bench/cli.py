"""The commands `kdpipe bench NAME`."""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from stages.bench.caching import caching as run_caching
from stages.bench.data import index_or_digits, workplace
from stages.bench.parity import POLICIES
from stages.bench.parity import parity as run_parity
from stages.bench.step import step as run_step
from stages.bench.targets import targets as run_targets
from stages.bench.views import views as run_views


@click.group()
def bench() -> None:
    """Measure what the documentation claims: our figure and a peer's from the same run, as a ratio.

    Without --shards the benches run on scikit-learn's digits.
    """


def _shards(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--limit", type=int, help="Only the first N samples.")(function)
    return click.option("--shards", help="Index of shards to run on [default: the digits].")(function)


def _json(function: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")(function)


@bench.command()
@_shards
@click.option("--policy", type=click.Choice(list(POLICIES)), default="recipe", show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@_json
def parity(shards: str | None, limit: int | None, policy: str, steps: int, device: str, as_json: bool) -> None:
    """Loss differences between a student from the cache and one with the teacher online, over the steps."""
    with workplace() as folder:
        index = index_or_digits(shards, folder, limit)
        _report("parity", run_parity(index, folder, policy, steps, device), as_json)


@bench.command()
@_shards
@click.option("--size", default=224, show_default=True, help="Render size, pixels.")
@click.option("--repeats", default=5, show_default=True)
@_json
def caching(shards: str | None, limit: int | None, size: int, repeats: int, as_json: bool) -> None:
    """Core-milliseconds a view that cache-teacher adds to the teacher's forward, at 4 views a decode."""
    with workplace() as folder:
        _report("caching", run_caching(index_or_digits(shards, folder, limit), folder, size, repeats), as_json)


@bench.command()
@_shards
@click.option("--student", default="resnet18", show_default=True)
@click.option("--size", default=64, show_default=True, help="Render size, pixels.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--steps", default=30, show_default=True)
@_json
def step(
    shards: str | None, limit: int | None, student: str, size: int, batch_size: int, steps: int, as_json: bool
) -> None:
    """A student's step from the cache against the same step without distillation."""
    with workplace() as folder:
        index = index_or_digits(shards, folder, limit)
        _report("step", run_step(index, folder, student, size, batch_size, steps), as_json)


@bench.command()
@click.option("--k", default=16, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@_json
def targets(k: int, repeats: int, as_json: bool) -> None:
    """Bytes a view, and core-microseconds a row to read targets in epoch order."""
    with workplace() as folder:
        _report("targets", run_targets(folder, k=k, repeats=repeats), as_json)


@bench.command()
@_shards
@click.option("--size", default=224, show_default=True, help="Render size, pixels.")
@click.option("--repeats", default=5, show_default=True)
@_json
def views(shards: str | None, limit: int | None, size: int, repeats: int, as_json: bool) -> None:
    """Core-milliseconds a view under RandAugment and erasing against timm's transform, and of each operation.

    Give it --shards of photographs: the digits are so small that decoding them, most of a view's cost, is free.
    """
    with workplace() as folder:
        figures = run_views(index_or_digits(shards, folder, limit), size, repeats)
    if not as_json:
        for name, op in figures.pop("operations").items():
            click.echo(f"{name:22} {op['ms']:.3f} ms, PIL {op['pil_ms']:.3f}, {op['ratio']:.1f} times as fast")
    _report("views", figures, as_json)


def _report(name: str, figures: dict[str, Any], as_json: bool) -> None:
    machine = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"
    report = {"bench": name, **figures, "machine": machine}
    if as_json:
        click.echo(json.dumps(report))
        return
    for key, value in report.items():
        shown = f"{value['median']:.4g} ({value['min']:.4g} to {value['max']:.4g})" if _timed(value) else value
        click.echo(f"{key}: {shown}")


def _timed(value: Any) -> bool:
    return isinstance(value, dict) and "median" in value


def _processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
