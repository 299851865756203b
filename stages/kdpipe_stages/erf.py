"""`kdpipe erf`: effective receptive fields of several models, side by side."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kdpipe.errors import ConfigError
from kdpipe_stages.command import INDEX, JSON
from kdpipe_stages.options import SETTINGS, TRUST, Given, command, section
from kdpipe_stages.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.shards import Index
    from kdpipe.views import ViewsConfig

# As the papers do it; a smaller image cuts a field off.
_SIZE, _IMAGES = 1024, 50
_MEASURES = {"log": "of log10(1 + gradient), as published", "gradient": "of the gradient itself"}


@command("erf", "  kdpipe erf slak_tiny=slak_tiny.pth convnext_tiny --index runs/val.index --out runs/erf.png")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@section(
    "Data",
    INDEX,
    click.option("--limit", type=int, default=_IMAGES, help="Use the first N samples only."),
    click.option("--input-size", type=click.IntRange(1), default=_SIZE, help="Side of the square images in pixels."),
)
@section(
    "Models",
    click.option("--pretrained", is_flag=True, help="Use timm's published weights for models named without a file."),
    click.option(
        "--num-classes", type=click.IntRange(1), help="Number of classes, where neither model nor weights have one."
    ),
    TRUST,
)
@section(
    "Output",
    click.option("--out", required=True, type=click.Path(), help="The heat maps, a PNG; an existing one is replaced."),
    JSON,
)
@SETTINGS
def erf(
    models: tuple[str, ...],
    index_path: str,
    limit: int,
    input_size: int,
    pretrained: bool,
    num_classes: int | None,
    out: str,
    as_json: bool,
    given: Given,
) -> None:
    """Draw and measure the effective receptive field of the centre of each MODEL's final feature map.

    MODEL is a file of weights that kdpipe wrote; NAME=FILE, a model's name and its weights; or a name: timm's, a hub
    name, package.module:factory. A timm model by name alone has random weights, the same every time.

    All models see the same images: all of a square one, else its centre. Of the settings these have an effect:
    crop_pct, interpolation and exif of views; device, threads and channels_last of teacher.
    """
    import torch

    from kdpipe.shards import Index
    from kdpipe_stages.erf_models import RANDOM, Subject, parse_model
    from kdpipe_stages.erf_sheet import check_out, sheet
    from kdpipe_stages.pictures import save

    settings = given.load()
    check_out(out)
    index = Index.open(index_path).limit(limit)
    configs = [parse_model(model, pretrained, settings.teacher.trust) for model in models]
    if pretrained and not any(config.pretrained for config in configs):
        raise ConfigError("every model has weights of its own", where="--pretrained", do="Leave it out")
    if settings.teacher.threads:
        torch.set_num_threads(settings.teacher.threads)
    subjects = [
        Subject(model, config, settings.teacher, num_classes) for model, config in zip(models, configs, strict=True)
    ]
    for subject in subjects:
        if subject.weights == RANDOM:
            click.echo(f"{subject.label}: {RANDOM}; NAME=FILE or --pretrained gives it others", err=True)
    views = settings.views
    if "crop_pct" not in views.model_fields_set:
        views = views.model_copy(update={"crop_pct": 1.0})
    with Progress(len(index), "images", "measuring") as progress:
        # Every model's first image comes before any second one: what can't run is known at once.
        for pixels in center_views(index, views, input_size):
            for subject in subjects:
                subject.add(pixels)
            progress.advance(1)
    found = [subject.result() for subject in subjects]
    for subject in subjects:
        if subject.field.skipped:
            click.echo(f"{subject.label}: {subject.field.skipped} images skipped: gradients not finite", err=True)
    save(sheet([(subject.heat(), *subject.title) for subject in subjects]), out, "picture")
    if as_json:
        click.echo(json.dumps({"out": out, "input_size": input_size, "models": found}))
    else:
        click.echo(_text(found, input_size, len(index)))
        click.echo(out)


def center_views(index: "Index", views: "ViewsConfig", size: int) -> "Iterator[np.ndarray]":
    """The center view of every sample in order, uint8 (size, size, 3)."""
    from kdpipe.shards import BlockReader
    from kdpipe.views.block import decode_sample
    from kdpipe.views.render import render_view

    reader = BlockReader(index)
    for row in range(len(index)):
        image = decode_sample(index, row, reader.image(row), views)
        yield render_view(views, index.shard_of(row).name, index.key(row), "center", image, size)


def _text(found: list[dict[str, Any]], size: int, images: int) -> str:
    """A table for each measure, a row a model."""
    names = [f"{one['model']}, {one['weights']}" for one in found]
    width = max(map(len, names))
    lines = [f"sides in pixels of {size}, and areas, of the smallest centred squares; mean of {images} images"]
    for measure, title in _MEASURES.items():
        shares = found[0][measure]
        lines += ["", title, " ".join(["holding more than".ljust(width), *(f"{share:>14}" for share in shares)])]
        for name, one in zip(names, found, strict=True):
            cells = (f"{s['side']:>6} {100 * s['area']:>5.1f} %" for s in one[measure].values())
            lines.append(" ".join([name.ljust(width), *cells]))
    return "\n".join(lines)
