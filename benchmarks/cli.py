"""`python -m benchmarks NAME`; each imports its bench when it runs, so that `--help` is quick."""

import json
from collections.abc import Callable
from typing import Any

import click

from benchmarks.benches import BENCHES
from kdpipe_stages.cli import ErrorGroup


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure what the documentation claims: our figure and a reference's from the same run, as a ratio.

    Without --index the benches run on scikit-learn's digits.
    """


def _shards(function: Callable[..., None]) -> Callable[..., None]:
    function = click.option("--limit", type=click.IntRange(1), help="Only the first N samples.")(function)
    return click.option("--index", "shards", help="Index of shards to run on [default: the digits].")(function)


def _json(function: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")(function)


def _count(name: str, default: int, text: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, type=click.IntRange(1), default=default, show_default=True, help=text)


def _repeats(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return _count("--repeats", default, "Rounds, after one to warm up.")


_size = _count("--size", 224, "Render size, pixels.")


@bench.command()
@_shards
# Those of benchmarks.parity, whose import takes seconds.
@click.option("--policy", type=click.Choice(["crop", "recipe"]), default="recipe", show_default=True)
@_count("--steps", 50)
@click.option("--device", default="cpu", show_default=True)
@_json
def parity(shards: str | None, limit: int | None, policy: str, steps: int, device: str, as_json: bool) -> None:
    """Differences of the losses of a student from the cache and of one with the teacher online."""
    from benchmarks.data import index_or_digits, workplace
    from benchmarks.parity import parity as run

    with workplace() as folder:
        _report(run(index_or_digits(shards, folder, limit), folder, policy, steps, device), as_json)


@bench.command()
@_shards
@_size
@_repeats(5)
@_json
def caching(shards: str | None, limit: int | None, size: int, repeats: int, as_json: bool) -> None:
    """Core-milliseconds a view that cache-teacher adds to the teacher's forward, at 4 views a decode."""
    from benchmarks.caching import caching as run
    from benchmarks.data import index_or_digits, workplace

    with workplace() as folder:
        index = index_or_digits(shards, folder, limit)
        _report(run(index, folder, size, repeats) | _images(index), as_json)


@bench.command()
@_shards
@click.option("--student", default="resnet18", show_default=True)
@_count("--size", 64, "Render size, pixels.")
@_count("--batch-size", 64)
@_count("--steps", 30)
@_json
def step(
    shards: str | None, limit: int | None, student: str, size: int, batch_size: int, steps: int, as_json: bool
) -> None:
    """A student's step from the cache against the same step without distillation."""
    from benchmarks.data import index_or_digits, workplace
    from benchmarks.step import step as run

    with workplace() as folder:
        _report(run(index_or_digits(shards, folder, limit), folder, student, size, batch_size, steps), as_json)


@bench.command()
@_count("--k", 16, "Classes kept a view.")
@_repeats(7)
@_json
def targets(k: int, repeats: int, as_json: bool) -> None:
    """Bytes a view, and core-microseconds a row to read targets in epoch order."""
    from benchmarks.data import workplace
    from benchmarks.targets import targets as run

    with workplace() as folder:
        _report(run(folder, k=k, repeats=repeats), as_json)


@bench.command()
@_shards
@_size
@_repeats(5)
@_json
def views(shards: str | None, limit: int | None, size: int, repeats: int, as_json: bool) -> None:
    """Core-milliseconds a view under RandAugment and erasing against timm's transform, and of each operation.

    Give it --index of photographs: the digits are so small that decoding them, most of a view's cost, is free.
    """
    from benchmarks.data import index_or_digits, workplace
    from benchmarks.views import views as run

    with workplace() as folder:
        index = index_or_digits(shards, folder, limit)
        figures = run(index, size, repeats) | _images(index)
    if not as_json:
        for name, op in figures.pop("operations").items():
            click.echo(f"{name:22} {op['ms']:.3f} ms, PIL {op['pil_ms']:.3f}, {op['ratio']:.1f} times as fast")
    _report(figures, as_json)


@bench.command()
@click.option("--model", default="slak_tiny", show_default=True, help="timm name.")
@_size
@_count("--batch-size", 8, "Images a forward.")
@click.option(
    "--amp-dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
)
@click.option("--device", default="auto", show_default=True)
@click.option("--seconds", type=click.FloatRange(0), default=180, show_default=True, help="For the search.")
@_repeats(7)
@_json
def teacher(
    model: str,
    size: int,
    batch_size: int,
    amp_dtype: str,
    device: str,
    seconds: float,
    repeats: int,
    as_json: bool,
) -> None:
    """Images a second of a teacher in the fastest form found here, in its plain form, and forced to NCHW."""
    from benchmarks.teacher import teacher as run

    _report(run(model, size, batch_size, amp_dtype, device, seconds, repeats), as_json)


@bench.command()
@_shards
@_count("--workers", 2, "Processes of each side, one thread each.")
@_size
@_repeats(3)
@_json
def workers(shards: str | None, limit: int | None, workers: int, size: int, repeats: int, as_json: bool) -> None:
    """Dask workers against as many raw processes that run the same forward."""
    from benchmarks.data import workplace
    from benchmarks.workers import workers as run
    from kdpipe.shards import Index

    index = None if shards is None else Index.open(shards).limit(limit)
    with workplace() as folder:
        _report(run(index, folder, workers, size, repeats, limit), as_json)


@bench.command()
@_count("--workers", 64)
@_count("--tasks", 5000)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Of a task's sleep [default: measured here].")
@_json
def cluster(workers: int, tasks: int, seconds: float | None, as_json: bool) -> None:
    """A simulated run on many workers: the teacher is a sleep of its measured time."""
    from benchmarks.data import workplace
    from benchmarks.simulated import simulated as run

    with workplace() as folder:
        _report(run(folder, workers, tasks, seconds), as_json)


@bench.command()
@_count("--tasks", 40, "Many, to compare with one.")
@_json
def memory(tasks: int, as_json: bool) -> None:
    """Peak memory of cache-teacher at one task and at many."""
    from benchmarks.data import workplace
    from benchmarks.memory import memory as run

    with workplace() as folder:
        _report(run(folder, tasks), as_json)


@bench.command("index-open")
@_count("--samples", 14_000_000)
@_count("--readers", 4, "Processes that open it at the same time.")
@_json
def index_open(samples: int, readers: int, as_json: bool) -> None:
    """Seconds and memory to open a large index, alone and by several processes."""
    from benchmarks.data import workplace
    from benchmarks.index_open import index_open as run

    with workplace() as folder:
        _report(run(folder, samples, readers), as_json)


@bench.command()
@_shards
@click.option("--val", help="Index of shards to validate on.")
@click.option("--val-limit", type=click.IntRange(1), help="Only the first N of them.")
@click.option("--weights", help="The teacher's, as kdpipe wrote them [default on the digits: trained here].")
@click.option("--config", "config_file", help="YAML file; its sections views and teacher count.")
@click.option("--student", help="timm name [default: a small resnet10t].")
@click.option("--model-kwargs", multiple=True, metavar="KEY=VALUE", help="Argument of the student; repeatable.")
@_count("--epochs", 20, "Of each run, and views in the cache.")
@_count("--batch-size", 64)
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=3e-3, show_default=True)
@_count("--seeds", 3)
@_count("--jobs", 2, "Runs at a time, one thread each.")
@click.option("--only", multiple=True, metavar="NAME", help="This loss; repeatable.")
@click.option("--out", default="runs/losses", show_default=True, help="Folder for cache and runs; they are resumed.")
@click.option("--document", help="Also draw the tables into this document, NAME.md; its figures are in NAME.json.")
@click.option("--name", default="Digits", show_default=True, help="Of these figures there.")
@_json
def losses(document: str | None, name: str, as_json: bool, **options: Any) -> None:
    """One student with every loss, from one cache, with the same steps, against labels alone.

    Without --index a tenth of the digits' labels are known, and the teacher is trained here with all of them.
    """
    from benchmarks import report
    from benchmarks.comparison.command import measure, show
    from benchmarks.comparison.table import draw
    from benchmarks.reporting import circumstances

    option = "--document"
    known = {} if document is None else report.read(document, option)  # refused now rather than in the end
    figures = measure(**options)
    if document is not None:
        known[name] = {"bench": "losses", **figures, **circumstances()}
        report.write(document, known, draw, option)
    if as_json:
        _report(figures, as_json)
    else:
        show(figures)


@bench.command()
@_shards
@click.option("--weights", help="The teacher's. Without --index it is trained, and kept there, if there is none.")
@click.option("--config", "config_file", type=click.Path(), help="YAML file: the views of --index, the teacher.")
@click.option("--name", help="Of these figures in --out [default: Synthetic, or the index's name].")
@_count("--steps", 300, "Of the student before its gradients are compared.")
@_count("--batches", 4)
@_count("--rows", 64, "Of a batch.")
@click.option("--out", help="Also draw the tables into this document, NAME.md; its figures are in NAME.json.")
@_json
def fidelity(
    shards: str | None,
    limit: int | None,
    weights: str | None,
    config_file: str | None,
    name: str | None,
    steps: int,
    batches: int,
    rows: int,
    out: str | None,
    as_json: bool,
) -> None:
    """What `kdpipe fidelity` measures, on a teacher of a thousand classes made of scikit-learn's digits.

    Besides: other formats' errors, and each loss's difference to the teacher online.
    """
    from pathlib import Path

    from benchmarks.data import workplace
    from benchmarks.fidelity.command import keep, measured
    from kdpipe.fidelity.run import Size
    from kdpipe_stages.fidelity import lines

    with workplace() as folder:
        figures = measured(folder, shards, limit, weights, config_file, Size(steps, batches, rows), out)
    if out is not None:
        keep(out, name or ("Synthetic" if shards is None else Path(shards).stem), figures)
    click.echo(json.dumps(figures) if as_json else "\n".join(lines(figures)))


@bench.command("all")
@click.option("--index", "shards", help="Index of photographs, for the benches that need some [default: the digits].")
@click.option("--only", type=click.Choice([b.name for b in BENCHES]), multiple=True, help="This bench; repeatable.")
@click.option("--out", required=True, help="The document, NAME.md; its figures are in NAME.json beside it.")
def all_(shards: str | None, only: tuple[str, ...], out: str) -> None:
    """Run every bench in a process of its own, one after the other, and draw their tables into the document.

    A bench that fails (exit code 1 in the end) or is left out keeps its tables. A bound that isn't met is marked in
    the document and fails nothing.
    """
    from benchmarks.run_all import run_benches

    failed = run_benches([b for b in BENCHES if not only or b.name in only], shards, out)
    if failed:
        click.echo(f"{out}: failed: {', '.join(failed)}", err=True)
        click.get_current_context().exit(1)
    click.echo(out)


def _images(index: Any) -> dict[str, Any]:
    """What the images are like, for benches of which decoding is a part."""
    return {"image_kb": float(index.image_size.mean()) / 1000}


def _report(figures: dict[str, Any], as_json: bool) -> None:
    from benchmarks.reporting import report

    report(figures, as_json)
