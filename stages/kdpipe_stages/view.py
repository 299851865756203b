"""`kdpipe view`: a sheet of some samples' views, each with its random draws."""

import json
from concurrent.futures import ThreadPoolExecutor

import click

from kdpipe.errors import ConfigError
from kdpipe_stages.caching_options import parse_views
from kdpipe_stages.options import SETTINGS, Given, command, section

SIZE = 224


@command("view", "  kdpipe view runs/train.index --config preset:cifar10 --views 0:8 --out runs/views.png")
@click.argument("index_path", metavar="INDEX")
@section(
    "Data",
    click.option(
        "--key", "keys", multiple=True, help="A sample, KEY or SHARD:KEY; by default the first one. Repeatable."
    ),
    click.option("--cache", metavar="PATH", help="Show the views of this cache: its policy, its size."),
)
@section(
    "Views",
    click.option("--views", default="0:8", help="Views to draw: 0:4, 7, center, five-crop, or several with commas."),
    click.option(
        "--input-size",
        type=click.IntRange(1),
        help=f"Side of the rendered views in pixels; by default the cache's, or {SIZE}.",
    ),
)
@section(
    "Output",
    click.option("--out", required=True, type=click.Path(), help="The sheet, a PNG; an existing one is replaced."),
    click.option("--json", "as_json", is_flag=True, help="Print the draws as JSON."),
)
@SETTINGS
def view(
    index_path: str,
    keys: tuple[str, ...],
    views: str,
    cache: str | None,
    input_size: int | None,
    out: str,
    as_json: bool,
    given: Given,
) -> None:
    """Draw a sheet of the views of samples of INDEX, to check a policy before it is used.

    One row a sample: the image with the views' crops, then each view as the model gets it, but not normalised, with
    its random draws below. A mixed view is followed by its partner's view. Erased boxes are grey, or noise around
    grey. Policy and seed are those of the settings, or of --cache.
    """
    from kdpipe.cache import Cache, Store, require_match
    from kdpipe.cache.layout import describe
    from kdpipe.shards import BlockReader, Index
    from kdpipe.views.block import paired_index
    from kdpipe_stages.pictures import save
    from kdpipe_stages.view_sheet import find, look, sheet

    wanted, index = parse_views(views), Index.open(index_path)
    if cache is None:
        settings = given.load()
        for remark in settings.views.remarks():
            click.echo(remark, err=True)
        if settings.views.mix == "targets" and settings.views.mixes:
            click.echo("mix targets: these are the views that the teacher sees; the student mixes them", err=True)
        config, size = settings.views.cached, input_size or SIZE
    else:
        if given.config_file or given.sets:
            raise ConfigError("the cache has its own policy", where="--cache", do="Leave out --config and --set")
        held = Cache(Store(cache))
        config, size = held.views_config, input_size or held.size
        index = index.limit(sum(shard["samples"] for shard in held.shards))
        require_match(held, index, config, None)
        if absent := [v for v in wanted if v not in held.views()]:
            click.echo(f"not in the cache, or not of all shards: views {describe(absent)}", err=True)
    rows = find(index, keys) if keys else [0]
    reader = BlockReader(paired_index(index, config))
    with ThreadPoolExecutor() as pool:
        samples = [look(reader, config, row, wanted, size, pool) for row in rows]
    save(sheet(samples, config, size), out, "sheet")
    if as_json:
        named = ("shard", "key", "view", "draws")
        click.echo(json.dumps([{n: getattr(tile, n) for n in named} for s in samples for tile in s.tiles]))
    else:
        click.echo(f"{out}: {len(samples)} samples x {len(wanted)} views at {size} pixels")
