"""`kdpipe fidelity`: what each encoding of a teacher's outputs costs the losses that will learn from it."""

import json
from typing import Any

import click

from kdpipe_stages.command import INDEX, JSON, LIMIT
from kdpipe_stages.options import SETTINGS, TRUST, Given, command, section


@command(
    "fidelity",
    "  kdpipe fidelity --index runs/train.index --weights teacher.safetensors --loss kd --loss rkd",
)
@section("Data", INDEX, LIMIT)
@section(
    "Teacher",
    "teacher.model --teacher",
    "teacher: weights checkpoint_key key_prefix class_map pretrained model_kwargs",
    "teacher: num_classes input_size batch_size amp_dtype",
    TRUST,
)
@section(
    "Measuring",
    click.option("--loss", "losses", multiple=True, help="A loss you mean to use; repeatable [default: all]."),
    click.option("--steps", type=click.IntRange(1), default=300, help="Steps of the student beforehand."),
    click.option("--batches", type=click.IntRange(1), default=4, help="Batches to compare on."),
    click.option("--rows", type=click.IntRange(2), default=64, help="Views of a batch."),
)
@section("Output", JSON)
@SETTINGS
def fidelity(
    index_path: str,
    limit: int | None,
    losses: tuple[str, ...],
    steps: int,
    batches: int,
    rows: int,
    as_json: bool,
    given: Given,
) -> None:
    """Measure how far each encoding of the targets puts a student's gradients off, for the losses you mean to use.

    A small student is trained for some steps from the teacher's exact outputs; then its gradients from encoded
    targets are compared with those from exact ones: ||g - g_exact|| / ||g_exact||. Nothing is written.
    """
    from kdpipe.fidelity.loss_cases import loss_cases
    from kdpipe.fidelity.run import Size, encode, measure_fidelity
    from kdpipe.fidelity.setup import make_setup
    from kdpipe.shards import Index
    from kdpipe.teacher import Teacher

    settings, cases = given.load(), loss_cases(losses)
    index, size = Index.open(index_path).limit(limit), Size(steps, batches, rows)
    setup = make_setup(index, settings.views, Teacher(settings.teacher, index.num_classes))
    report = measure_fidelity(setup, encode(setup, size, _log), cases, size, _log)
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
