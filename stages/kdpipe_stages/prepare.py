"""`kdpipe prepare`: images to shards."""

import click

from kdpipe_stages.command import command


@click.group()
def prepare() -> None:
    """Make WebDataset shards: of a folder of images, or of scikit-learn's digits."""


@command("folder", "  kdpipe prepare folder images/train --out shards --resize 256", prepare)
@click.argument("source")
@click.option("--out", required=True, type=click.Path(), help="A new folder for the shards.")
@click.option("--name", default="train", show_default=True, help="The shards' name, before their number.")
@click.option("--samples-per-shard", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--resize", type=click.IntRange(1), help="Shrink the shorter side to so many pixels.")
@click.option("--seed", default=0, show_default=True, help="Of the order.")
@click.option("--workers", type=click.IntRange(1), help="Threads; by default one a core.")
def folder(
    source: str,
    out: str,
    name: str,
    samples_per_shard: int,
    resize: int | None,
    seed: int,
    workers: int | None,
) -> None:
    """Shards of SOURCE, a folder with one folder of images a class, shuffled.

    Classes are numbered in the order of their folders' names; classes.json keeps the names.
    """
    from kdpipe.shards.prepare import prepare_folder

    paths = prepare_folder(
        source,
        out,
        name=name,
        samples_per_shard=samples_per_shard,
        resize=resize,
        seed=seed,
        workers=workers,
    )
    click.echo(f"{out}: {len(paths)} shards, {paths[0].name} to {paths[-1].name}")


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
