"""`kdpipe index`: shards to an index."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdpipe._util.redact import showable
from kdpipe.errors import IndexFileError
from kdpipe.shards import Index
from kdpipe.shards.document import MAX_CLASSES
from kdpipe_stages.command import command
from kdpipe_stages.problems import listed_problems, print_skipped
from kdpipe_stages.progress import showing

if TYPE_CHECKING:
    from kdpipe.shards.labels import Check


@command("index", "  kdpipe index 'shards/train-{0000..0019}.tar' --out runs/train.index --num-classes 1000")
@click.argument("source")
@click.option("--out", required=True, type=click.Path(), help="The index, a folder.")
@click.option("--block-size", type=click.IntRange(1), default=256, show_default=True, help="Samples a block.")
@click.option("--num-classes", type=click.IntRange(1, MAX_CLASSES), help="Refuse labels that are not below it.")
@click.option(
    "--label-key",
    metavar="SUFFIX[:FIELD]",
    help="Where labels are: a member as cls, txt or output.cls, or a field of JSON as json:label or json:a.b "
    "[default: cls, or else json:label].",
)
@click.option("--labels", type=click.Path(), help="A .csv of key,label: labels from there, not from the shards.")
@click.option(
    "--class-map",
    type=click.Path(),
    help="Class names, or names and their numbers: .json, .csv, .txt with a name a line, or another index "
    "[default: the classes.json of kdpipe prepare].",
)
@click.option("--image-key", metavar="SUFFIX", help="The image, where samples have several, as jpg or *.jpg.")
@click.option("--split", help="Split of timm's _info.json.")
@click.option("--skip-bad", is_flag=True, help="Leave bad samples and shards out and list them in the index.")
@click.option(
    "--check",
    type=click.Choice(["decode", "header"]),
    default="decode",
    show_default=True,
    help="Decode every image, or read its header only.",
)
@click.option("--limit", type=click.IntRange(1), help="Index the first so many samples.")
@click.option("--workers", type=click.IntRange(1), help="Threads; by default one a core.")
@click.option("--overwrite", is_flag=True, help="Replace another index.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def index(
    source: str,
    out: str,
    block_size: int,
    num_classes: int | None,
    label_key: str | None,
    labels: str | None,
    class_map: str | None,
    image_key: str | None,
    split: str | None,
    skip_bad: bool,
    check: "Check",
    limit: int | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Index the WebDataset shards of SOURCE, checking every sample.

    SOURCE is a brace pattern ('train-{0000..0019}.tar'), a folder, a glob, an fsspec URL of these, timm's
    _info.json, or a .txt file with a URL a line, presigned ones for example. Quote patterns, so that the shell leaves
    them alone. The index keeps no user, password or query of a URL: later commands take credentials from the
    environment, or fresh URLs by `kdpipe --shard-urls`.
    """
    from kdpipe.shards import build_index
    from kdpipe.shards.classes import load_class_map
    from kdpipe.shards.labels import load_table
    from kdpipe.shards.layout import DOCUMENT

    before = _digest(out)
    with showing("shards", "index") as show, listed_problems():
        made = build_index(
            source,
            out,
            block_size=block_size,
            num_classes=num_classes,
            label_key=label_key,
            image_key=image_key,
            class_map=load_class_map(Path(class_map)) if class_map else None,
            labels=load_table(Path(labels)) if labels else None,
            split=split,
            skip_bad=skip_bad,
            check=check,
            limit=limit,
            workers=workers,
            overwrite=overwrite,
            progress=lambda done, total, samples: show(done, total, samples=samples),
        )
    skipped = [(" ".join([e["shard"], e["key"]]).strip(), e["reason"]) for e in made.skipped]
    print_skipped(skipped, f"{out}/{DOCUMENT}")
    for line in made.warnings():
        click.echo(f"warning: {line}", err=True)
    summary = summarise(made) | {"index": out, "unchanged": made.digest == before}
    click.echo(json.dumps(summary) if as_json else _text(summary))


def summarise(made: Index) -> dict[str, Any]:
    """What an index holds, in a few numbers."""
    labels = made.labels
    return {
        "shards": len(made.shards),
        "samples": len(made),
        "blocks": made.blocks,
        "classes": made.num_classes or int(labels.max()) + 1,
        "class_names": made.classes,
        "unlabelled": made.unlabelled,
        "skipped": made.skipped,
        "bytes": made.bytes,
        "fingerprint": made.fingerprint,
        "warnings": made.warnings(),
    }


def _text(summary: dict[str, Any]) -> str:
    classes = "no labels" if not summary["classes"] else f"{summary['classes']} classes"
    names = summary["class_names"]
    if names:
        classes += f" ({', '.join(showable(names[:3]))}{', ...' if len(names) > 3 else ''})"
    return (
        f"{summary['index']}{' (unchanged)' if summary['unchanged'] else ''}: {summary['shards']} shards, "
        f"{summary['samples']} samples, {classes}, {summary['unlabelled']} unlabelled, "
        f"{len(summary['skipped'])} skipped, {summary['bytes']} bytes\nfingerprint {summary['fingerprint']}"
    )


def _digest(path: str) -> str | None:
    try:
        return Index.open(path).digest
    except IndexFileError:  # nothing there yet, or something that build_index judges
        return None
