"""`kdpipe losses`: what students can learn from, what each needs of a cache, and what that weighs."""

import json
from typing import Any

import click
from rich.console import Console

from kdpipe.errors import ConfigError
from kdpipe.losses import ALIASES, LOSSES, Loss, Requirements
from kdpipe.targets import FEATURE_FLAGS, Encoding, TargetsConfig


@click.command("losses")
@click.argument("name", required=False)
@click.option("--classes", type=click.IntRange(2), default=1000, show_default=True, help="The teacher's classes.")
@click.option("--width", type=click.IntRange(1), default=998, show_default=True, help="Channels of its final map.")
@click.option("--side", type=click.IntRange(1), default=7, show_default=True, help="Side of its final map.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def losses(name: str | None, classes: int, width: int, side: int, as_json: bool) -> None:
    """List the losses of train-student: paper, needs, bytes a view in the cache, defaults.

    NAME shows one alone, with its numbers. Bytes are uncompressed, of the smallest cache that serves it with little
    loss; the teacher's sizes are SLaK-T's on ImageNet unless given. Features come as int8, logits as float16.
    """
    name = ALIASES.get(name, name) if name else None
    if name is not None and name not in LOSSES:
        allowed = ", ".join([*LOSSES, *ALIASES])
        raise ConfigError("unknown loss", found=name, allowed=allowed, do="Name one; + only sums them in training")
    chosen = [LOSSES[name]] if name else list(LOSSES.values())
    found = [describe(loss, classes, width, side) for loss in chosen]
    if as_json:
        click.echo(json.dumps(found))
        return
    console = Console(width=120, highlight=False, markup=False)
    for one in found:
        console.print(f"{one['use']}: {one['paper']}", style="bold", soft_wrap=True)
        kept = f"{one['bytes_a_view']:,} bytes a view: kdpipe cache-teacher {one['flags']}"
        kept = kept if one["flags"] else "no cache"
        console.print(f"  needs {', '.join(one['needs'])}; {kept}", soft_wrap=True)
        if name:
            for field in one["numbers"]:
                console.print(f"  {field['set']} = {json.dumps(field['default'])}: {field['what']}", soft_wrap=True)
        else:
            numbers = ", ".join(f"{f['set'].rsplit('.', 1)[1]} {json.dumps(f['default'])}" for f in one["numbers"])
            console.print(f"  {numbers}", soft_wrap=True)


def describe(loss: type[Loss], classes: int, width: int, side: int) -> dict[str, Any]:
    """One loss with its default numbers, and the cache for a teacher of these sizes."""
    config = loss.Config()
    needs = loss.requirements_of(config)
    targets, flags = cheapest(needs, classes, width)
    size = 0
    if targets is not None:
        size = Encoding.of(targets, classes, {"pooled": (width,), "map": (side, side, width)}).nbytes
    section, fields = f"loss.{loss.name.replace('-', '_')}", loss.Config.model_fields
    return {
        "name": loss.name,
        "use": loss.usable(),
        "paper": loss.paper,
        "needs": _words(needs),
        "flags": flags,
        "bytes_a_view": size,
        "numbers": [
            {"set": f"{section}.{key}", "default": value, "what": fields[key].description}
            for key, value in config.model_dump(mode="json").items()
        ],
    }


def cheapest(needs: Requirements, classes: int, width: int) -> tuple[TargetsConfig | None, str]:
    """The smallest cache that serves these needs, and the flags that make it."""
    if not needs.targets:
        return None, ""
    kept: dict[str, Any] = {"kind": "none"}
    if needs.pooled or needs.head or (needs.dense and width < classes):
        kept["pooled"] = "int8" if not needs.dense else "float16"
    if needs.dense and "pooled" not in kept:
        kept["kind"] = "dense"
    if needs.logits and not needs.dense:
        kept["kind"] = "topk"
    if needs.map:
        kept["map"] = "int8"
    if needs.tail:
        kept["tail"] = True
    targets = TargetsConfig(**kept)
    words = [f"--targets {targets.kind}"]
    words += [f"{FEATURE_FLAGS[name]} {getattr(targets, name)}" for name in targets.features]
    return targets, " ".join([*words, *(["--last-stage"] if targets.tail else [])])


def _words(needs: Requirements) -> list[str]:
    said = {
        "labels": "labels",
        "logits": "" if needs.dense else "logits (top k)",
        "dense": "every class's logit",
        "pooled": "pooled feature",
        "map": "final map",
        "head": "the teacher's classifier",
        "tail": "the teacher's last stage",
    }
    return [word for name, word in said.items() if getattr(needs, name) and word]
