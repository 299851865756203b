"""`kdpipe inspect`: what a cache holds, and what the teacher says in it."""

import json
from typing import Any

import click

from kdpipe._util.redact import redact
from kdpipe.cache import Cache, Store
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import describe
from kdpipe.cache.tools.label_statistics import ViewLabels
from kdpipe.cache.tools.statistics import choose_blocks, committed_blocks, read_statistics, with_logits
from kdpipe.errors import CacheError, KdpipeError
from kdpipe.shards import Index
from kdpipe_stages.inspect_tables import print_records, print_statistics
from kdpipe_stages.progress import Progress


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
    """Print what a cache is of, how complete it is, its bytes, and what its teacher says.

    The teacher's part is read from the logits: accuracy and calibration by view, probability inside the first k
    classes, how sure it is, which classes it confuses, and which samples it contradicts, which is where to look
    for wrong labels. What needs labels is left out without an index.
    """
    held = Cache(Store(cache))
    for name in held.foreign:
        do = "kdpipe cache-teacher makes it anew"
        click.echo(f"{cache}: {name} doesn't count, it is of another cache or segment: {do}", err=True)
    report = describe_cache(held)
    if not no_statistics:
        report["statistics"] = _statistics(held, index_path, samples, seed, top)
    if as_json:
        click.echo(json.dumps(report))
        return
    print_records(report)
    if not no_statistics:
        print_statistics(report["statistics"])


def describe_cache(cache: Cache) -> dict[str, Any]:
    """Identity, completeness by shard and segment, bytes by array, the teacher's quality on what is there, parts."""
    segments: list[dict[str, Any]] = []
    for segment in cache.segments:
        names = cache.committed(segment)
        there = set(names)
        sizes = {f.name: 0 for f in segment.encoding.fields()}
        for name in names:
            for path, entry in cache.commits[segment.name, name]["files"].items():
                sizes[path.removeprefix(f"segments/{segment.name}/").split("/")[0]] += entry["bytes"]
        quality = cache.quality(segment)
        segments.append(
            {
                "name": segment.name,
                "span": describe(list(segment.views)),
                "encoding": segment.encoding.json(),
                "numerics": segment.numerics,
                "shards_done": len(names),
                "shards": len(cache.shards),
                "missing": [s["name"] for s in cache.shards if s["name"] not in there],
                "bytes": sizes,
                "bytes_per_view": sum(sizes.values()) / max(1, quality.views),
                **quality.means(),
            }
        )
    samples = sum(s["samples"] for s in cache.shards)
    return {
        "cache": redact(cache.store.url),
        "root": cache.root_digest(),
        "identity": cache.identity,
        "samples": samples,
        "complete_views": describe(cache.views()),
        "complete": all(not s["missing"] for s in segments) and bool(segments),
        "shards": _by_what_is_there(cache),
        "bytes": sum(sum(s["bytes"].values()) for s in segments),
        "parts": [{"name": name, "bytes": part["bytes"], **part["about"]} for name, part in cache.parts.items()],
        "segments": segments,
    }


def _by_what_is_there(cache: Cache) -> list[dict[str, Any]]:
    """Shards that have the same segments, together; in the order of the shards."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for shard in cache.shards:
        done = tuple(s.name for s in cache.segments if (s.name, shard["name"]) in cache.commits)
        missing = [s.name for s in cache.segments if s.name not in done]
        group = groups.setdefault(done, {"done": list(done), "missing": missing, "samples": 0, "names": []})
        group["samples"] += shard["samples"]
        group["names"].append(shard["name"])
    return list(groups.values())


def _statistics(cache: Cache, index_path: str | None, samples: int | None, seed: int, top: int) -> dict[str, Any]:
    remark, labels = None, None
    try:
        labels = _labels(cache, index_path)
    except KdpipeError as e:
        if index_path:
            raise
        remark = f"without labels: {e}"
    if cache.segments and not with_logits(cache):
        remark = "features alone are kept: there are no logits to read"
    blocks = choose_blocks(cache, samples, seed)
    all_samples = sum(len(block.rows) for block in committed_blocks(cache))
    with Progress(sum(len(block.rows) for block in blocks), "samples", "reading") as progress:
        found = read_statistics(cache, blocks, labels, top=top, on_samples=progress.advance)
    unknown = {} if labels else {"labelled": None, "mixed": None}
    classes = cache.classes or (labels.index.classes if labels else None)
    pairs = sorted(found.confusions.items(), key=lambda item: (-item[1], item[0]))[:top]
    return {
        "samples": found.samples,
        "of_samples": all_samples,
        "seed": seed if found.samples < all_samples else None,
        "labels": str(labels.index.path) if labels else None,
        "remark": remark,
        "views": [tally.summary() | unknown for tally in found.tallies if tally.views],
        "unmixed": found.unmixed,
        "classes": classes,
        "confusions": [{"label": label, "said": said, "views": n} for (label, said), n in pairs],
        "contradictions": found.contradictions,
    }


def _labels(cache: Cache, index_path: str | None) -> ViewLabels:
    runs = read_provenance(cache.store)
    if not index_path and not runs:
        raise CacheError("provenance is missing", where=cache.store, do="Pass --index")
    return ViewLabels(cache, Index.open(index_path or runs[-1]["shards"]))
