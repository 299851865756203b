"""`kdpipe fidelity`: what each encoding of a teacher's outputs costs the losses that will learn from it."""

import json
from typing import Any

import click

from kdpipe.fidelity.loss_cases import loss_cases
from kdpipe.fidelity.run import Size, encode, measure_fidelity
from kdpipe.fidelity.setup import make_setup
from kdpipe.shards import Index
from kdpipe.teacher import Teacher
from kdpipe_stages import settings as params


@click.command()
@click.option("--index", "index_path", required=True, help="Index of the shards, from kdpipe index.")
@click.option("--teacher", help="timm name, hub name, or package.module:factory.")
@click.option("--weights", help="safetensors file or weights-only pickle.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N samples.")
@click.option("--loss", "losses", multiple=True, help="A loss you mean to use; repeatable [default: all].")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Of the student beforehand.")
@click.option("--batches", type=click.IntRange(1), default=4, show_default=True, help="Batches to compare on.")
@click.option("--rows", type=click.IntRange(2), default=64, show_default=True, help="Views of a batch.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@params.trust_option
@params.options
def fidelity(
    index_path: str,
    teacher: str | None,
    weights: str | None,
    limit: int | None,
    losses: tuple[str, ...],
    steps: int,
    batches: int,
    rows: int,
    as_json: bool,
    trust: tuple[str, ...],
    config_file: str | None,
    sets: tuple[str, ...],
) -> None:
    """Measure how far each encoding of the targets puts a student's gradients off, for the losses you mean to use.

    A small student is trained for some steps from the teacher's exact outputs; then its gradients from encoded
    targets are compared with those from exact ones: ||g - g_exact|| / ||g_exact||. Nothing is written.
    """
    cases = loss_cases(losses)
    named = {"teacher.model": teacher, "teacher.weights": weights}
    settings = params.load(config_file, sets, params.trusting(trust) | named)
    index = Index.open(index_path).limit(limit)
    loaded = Teacher(settings.teacher, index.num_classes)
    setup, size = make_setup(index, settings.views, loaded), Size(steps, batches, rows)
    encoded = encode(setup, size, _log)
    report = measure_fidelity(setup, encoded, cases, size, _log)
    click.echo(json.dumps(report) if as_json else "\n".join(lines(report)))


def lines(report: dict[str, Any]) -> list[str]:
    """A line for each loss and encoding, and one for each loss that the teacher has no outputs for."""
    found = [f"{'loss':10} {'encoding':22} {'error':9} bytes a view"]
    for loss, encodings in report["errors"].items():
        for name, figure in encodings.items():
            refused = " (refused: the loss requires all classes)" if figure.get("refused") else ""
            size = f"{report['bytes'][name]['stored']:,.0f}"
            found.append(f"{loss:10} {name:22} {figure['student']['median']:<9.2g} {size}{refused}")
    return [*found, *(f"{loss:10} not measured: {why}" for loss, why in report["absent"].items())]


def _log(text: str) -> None:
    click.echo(f"fidelity: {text}", err=True)
