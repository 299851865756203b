"""`kdpipe inspect`: what a cache holds, and statistics of the teacher's outputs."""

import json

import click


@click.command()
@click.argument("cache")
@click.option(
    "--index", "index_path", help="Index of the shards, for the labels [default: the one it was cached from]."
)
@click.option("--samples", type=click.IntRange(1), help="Samples to read [default: all, up to 4 million views].")
@click.option("--seed", default=0, show_default=True, help="Choice of those samples, in whole blocks.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Confused pairs, contradictions.")
@click.option("--no-statistics", is_flag=True, help="Records alone: don't read the arrays.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(
    cache: str,
    index_path: str | None,
    samples: int | None,
    seed: int,
    top: int,
    no_statistics: bool,
    as_json: bool,
) -> None:
    """Print a cache's identity, completeness, bytes and teacher statistics.

    The statistics are read from the logits: accuracy and calibration by view, probability of the first k classes,
    confidence, confused classes, and samples whose label the teacher contradicts, which may be labelled wrongly.
    What needs labels is left out without an index.
    """
    from kdpipe.cache import Cache, Store
    from kdpipe.cache.tools.describe import describe_cache, describe_outputs
    from kdpipe.cache.tools.statistics import choose_blocks
    from kdpipe_stages.inspect_tables import print_records, print_statistics
    from kdpipe_stages.progress import Progress

    held = Cache(Store(cache))
    for name in held.unrelated:
        do = "kdpipe cache-teacher makes it again"
        click.echo(f"{cache}: {name} is ignored, it is of another cache or segment: {do}", err=True)
    report = describe_cache(held)
    if not no_statistics:
        blocks = choose_blocks(held, samples, seed)
        with Progress(sum(len(block.rows) for block in blocks), "samples", "reading") as progress:
            report["statistics"] = describe_outputs(
                held, index_path, blocks, seed=seed, top=top, on_samples=progress.advance
            )
    if as_json:
        click.echo(json.dumps(report))
        return
    print_records(report)
    if not no_statistics:
        print_statistics(report["statistics"])
