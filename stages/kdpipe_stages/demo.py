"""`kdpipe demo`: the whole path on scikit-learn's digits, with a baseline to compare with."""

import json
import statistics
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from kdpipe_stages.command import JSON, command, section


@command("demo", "  kdpipe demo --out runs/demo")
@section("Output", click.option("--out", default="runs/demo", help="Folder of shards, cache and runs."), JSON)
def demo(out: str, as_json: bool) -> None:
    """Distil a large-kernel teacher into a small-kernel student on scikit-learn's digits, in minutes.

    A tenth of the training images keep their labels. The student learns from the teacher's cached outputs for all
    images and from those labels; its baseline, with the same steps, from the labels alone. Three seeds each.
    """
    from kdpipe_stages.demo_run import Demo, writing

    run = Demo(Path(out), quiet=as_json)
    summary = run.all()
    with writing(run.out):
        (run.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    click.echo(json.dumps(summary)) if as_json else _show(summary, run.out)


def _show(s: dict[str, Any], out: Path) -> None:
    table = Table(title="Validation top-1, %", title_justify="left")
    for name in ("", "seeds", "mean"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, values: list[float]) -> None:
        table.add_row(name, "  ".join(f"{100 * v:.2f}" for v in values), f"{100 * statistics.mean(values):.2f}")

    row(f"teacher: SLaK, stripes of 13, all {s['images']} labels", [s["teacher_top1"]])
    row(f"student: kernels of 3, {s['labelled']} labels and the cache", s["student_top1"])
    row(f"baseline: the student without the cache, {s['labelled']} labels", s["baseline_top1"])
    console = Console(soft_wrap=True)
    console.print(table)
    low, high = s["gain_interval_95"]
    console.print(f"gain {s['gain_points']:.2f} points, 95 % interval {low:.2f} to {high:.2f}")
    console.print(
        f"{s['images']} images x {s['views']} views, {s['bytes_per_view']:.1f} bytes a view, "
        f"encoding loss {s['encoding_loss_nats']:.2g} nats; the cache verifies"
    )
    console.print("seconds: " + ", ".join(f"{name} {value}" for name, value in s["seconds"].items()))
    console.print(f"summary: {out / 'summary.json'}")
