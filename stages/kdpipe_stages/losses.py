"""`kdpipe losses`: the losses that a student can be trained with, what each needs in a cache, and its size."""

import json
from typing import Any

import click
from rich.console import Console

from kdpipe.losses import LOSSES, LossEntry, Requirements, find_loss
from kdpipe.targets import FEATURE_FLAGS, Encoding, TargetsConfig


@click.command("losses")
@click.argument("name", required=False)
@click.option("--classes", type=click.IntRange(2), default=1000, show_default=True, help="The teacher's classes.")
@click.option("--width", type=click.IntRange(1), default=998, show_default=True, help="Channels of its final map.")
@click.option("--side", type=click.IntRange(1), default=7, show_default=True, help="Side of its final map.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def losses(name: str | None, classes: int, width: int, side: int, as_json: bool) -> None:
    """List the losses of train-student: paper, requirements, bytes a view in the cache, defaults.

    NAME shows one loss with its hyperparameters; package.module:Class is a loss of yours. Bytes are uncompressed, of
    the smallest cache that serves it with little loss of precision; the teacher's sizes are SLaK-T's on ImageNet unless
    given. Features are int8, logits float16.
    """
    chosen = [find_loss(name)] if name else list(LOSSES.values())
    found = [describe(loss, classes, width, side) for loss in chosen]
    if as_json:
        click.echo(json.dumps(found))
        return
    console = Console(width=120, highlight=False, markup=False)
    for one in found:
        console.print(": ".join(filter(None, (one["use"], one["paper"]))), style="bold", soft_wrap=True)
        kept = f"{one['bytes_a_view']:,} bytes a view: kdpipe cache-teacher {one['flags']}"
        kept = kept if one["flags"] else "no cache"
        console.print(f"  needs {', '.join(one['needs']) or 'nothing'}; {kept}", soft_wrap=True)
        if name:
            for field in one["hyperparameters"]:
                note = f": {field['what']}" if field["what"] else ""
                console.print(f"  {field['set']} = {json.dumps(field['default'])}{note}", soft_wrap=True)
        else:
            defaults = [f"{f['set'].rsplit('.', 1)[1]} {json.dumps(f['default'])}" for f in one["hyperparameters"]]
            console.print(f"  {', '.join(defaults)}", soft_wrap=True)


def describe(loss: LossEntry, classes: int, width: int, side: int) -> dict[str, Any]:
    """One loss with its default hyperparameters, and the cache for a teacher of these sizes."""
    fields = loss.Config.model_fields
    config = loss.Config()
    targets, flags = cheapest(config.requirements, classes, width)
    size = 0
    if targets is not None:
        size = Encoding.of(targets, classes, {"pooled": (width,), "map": (side, side, width)}).nbytes
    return {
        "name": loss.name,
        "use": loss.usable,
        "paper": config.paper,
        "needs": _requirement_names(config.requirements),
        "flags": flags,
        "bytes_a_view": size,
        "hyperparameters": [
            {"set": f"loss.{loss.section}.{key}", "default": value, "what": fields[key].description}
            for key, value in config.model_dump(mode="json").items()
        ],
    }


def cheapest(requirements: Requirements, classes: int, width: int) -> tuple[TargetsConfig | None, str]:
    """The smallest cache with what these requirements list, and the options that make it."""
    if not requirements.targets:
        return None, ""
    kept: dict[str, Any] = {"kind": "none"}
    if requirements.pooled or requirements.head or (requirements.dense and width < classes):
        kept["pooled"] = "int8" if not requirements.dense else "float16"
    if requirements.dense and "pooled" not in kept:
        kept["kind"] = "dense"
    if requirements.logits and not requirements.dense:
        kept["kind"] = "topk"
    if requirements.map:
        kept["map"] = "int8"
    if requirements.tail:
        kept["tail"] = True
    targets = TargetsConfig(**kept)
    flags = [f"--targets {targets.kind}"]
    flags += [f"{FEATURE_FLAGS[name]} {getattr(targets, name)}" for name in targets.features]
    return targets, " ".join([*flags, *(["--last-stage"] if targets.tail else [])])


def _requirement_names(requirements: Requirements) -> list[str]:
    names = {
        "labels": "labels",
        "logits": "" if requirements.dense else "logits (top k)",
        "dense": "logits of all classes",
        "pooled": "pooled feature",
        "map": "final map",
        "head": "the teacher's classifier",
        "tail": "the teacher's last stage",
    }
    return [text for name, text in names.items() if getattr(requirements, name) and text]
