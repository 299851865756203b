"""`kdpipe prepare`: images to shards."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdpipe._util.redact import showable
from kdpipe_stages.command import command
from kdpipe_stages.problems import listed_problems, print_skipped
from kdpipe_stages.progress import showing

if TYPE_CHECKING:
    from kdpipe.shards.prepare import Prepared

_SHOWN = 20  # classes


@click.group()
def prepare() -> None:
    """Make WebDataset shards: of a folder of images, or of scikit-learn's digits."""


@command("folder", "  kdpipe prepare folder images/train --out shards --resize 256", prepare)
@click.argument("source")
@click.option("--out", required=True, type=click.Path(), help="A new folder for the shards.")
@click.option("--name", default="train", show_default=True, help="The shards' name, before their number.")
@click.option("--samples-per-shard", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--resize", type=click.IntRange(1), help="Shrink the shorter side to so many pixels.")
@click.option(
    "--classes",
    type=click.Path(),
    help="Class list: the classes.json or the index of another split, or as kdpipe index --class-map "
    "[default: the folders' names].",
)
@click.option(
    "--class-order",
    type=click.Choice(["plain", "natural"]),
    default="plain",
    show_default=True,
    help="Of the folders: torchvision's, or timm's, where 2 comes before 10.",
)
@click.option("--val-split", default=0.0, show_default=True, help="Share of each class that goes to OUT/val.")
@click.option("--convert", type=click.Choice(["png", "webp"]), help="Encode GIF, BMP, TIFF, AVIF again, without loss.")
@click.option(
    "--truncated",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="JPEGs that end early: keep what there is of them, grey below.",
)
@click.option("--skip-bad", is_flag=True, help="Leave bad files and folders out and list them in OUT/prepared.json.")
@click.option("--seed", default=0, show_default=True, help="Of the order and of the split.")
@click.option("--workers", type=click.IntRange(1), help="Threads; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def folder(
    source: str,
    out: str,
    classes: str | None,
    truncated: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Shards of SOURCE, a folder with one folder of images a class, shuffled.

    Every image is decoded. Classes are numbered in the order of their folders' names, or as --classes numbers them;
    classes.json keeps the names, and prepared.json what was counted, left out and converted.
    """
    from kdpipe.shards.classes import load_class_map
    from kdpipe.shards.prepare import REPORT, prepare_folder

    with showing("images", "decoding") as show, listed_problems():
        made = prepare_folder(
            source,
            out,
            classes=load_class_map(Path(classes)) if classes else None,
            keep_truncated=truncated == "keep",
            progress=show,
            **options,
        )
    print_skipped([(entry["file"], entry["reason"]) for entry in made.skipped], f"{out}/{REPORT}")
    for line in _remarks(made):
        click.echo(line, err=True)
    shards = {split: [str(path) for path in paths] for split, paths in made.shards.items()}
    click.echo(json.dumps(vars(made) | {"shards": shards}) if as_json else _text(made))


def _remarks(made: "Prepared") -> list[str]:
    lines = list(made.remarks)
    if made.ignored:
        lines.append("passed over: " + ", ".join(f"{count} {kind}" for kind, count in made.ignored.items()))
    kinds = Counter(f"{entry['from']} to {entry['to']}" for entry in made.converted)
    if kinds:
        lines.append("encoded again: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return [showable(line) for line in lines]


def _text(made: "Prepared") -> str:
    lines = []
    for split, paths in made.shards.items():
        counts = made.counts[split]
        number = f"{len(paths)} shard" + ("s" if len(paths) > 1 else "")
        lines.append(f"{paths[0].parent}: {number}, {paths[0].name} to {paths[-1].name}")
        shown = [f"{showable(name)} {count}" for name, count in zip(made.classes, counts, strict=True)][:_SHOWN]
        more = f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
        lines.append(f"  {sum(counts)} samples in {len(counts)} classes: {', '.join(shown)}{more}")
    return "\n".join(lines)


@command("digits", "  kdpipe prepare digits --out runs/digits", prepare)
@click.option("--out", required=True, type=click.Path(), help="A new folder for the folders train, val.")
@click.option("--val-fraction", default=0.2, show_default=True, help="Share of each class that goes to val.")
@click.option("--labelled", default=1.0, show_default=True, help="Share of each class in train that keeps its label.")
@click.option("--full", is_flag=True, help="Make train-full too: the images of train, all labelled.")
@click.option("--samples-per-shard", type=click.IntRange(1), default=256, show_default=True)
@click.option("--size", type=click.IntRange(1), default=32, show_default=True, help="Pixels of a side.")
@click.option("--seed", default=0, show_default=True, help="Of the split, the labelled share and the order.")
def digits(
    out: str, val_fraction: float, labelled: float, full: bool, samples_per_shard: int, size: int, seed: int
) -> None:
    """Shards of scikit-learn's 1,797 handwritten digits, a small set to try things on."""
    from kdpipe.shards.prepare import prepare_digits

    written = prepare_digits(
        out,
        val_fraction=val_fraction,
        labelled=labelled,
        full=full,
        samples_per_shard=samples_per_shard,
        size=size,
        seed=seed,
    )
    for name, paths in written.items():
        click.echo(f"{out}/{name}: {len(paths)} shards")
