"""`kdpipe inspect`: what a cache holds."""

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pipeline.cache import Cache, Store
from pipeline.cache.layout import describe


@click.command()
@click.argument("cache")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(cache: str, as_json: bool) -> None:
    """Print a cache's identity, how complete it is, and bytes by array."""
    report = describe_cache(Cache(Store(cache)))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def describe_cache(cache: Cache) -> dict[str, Any]:
    """Identity, completeness by segment, bytes by array, and the teacher's quality on what is there."""
    segments = []
    for segment in cache.segments:
        names = cache.committed(segment)
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
                "missing": [s["name"] for s in cache.shards if s["name"] not in set(names)],
                "bytes": sizes,
                "bytes_per_view": sum(sizes.values()) / max(1, quality.views),
                **quality.means(),
            }
        )
    samples = sum(s["samples"] for s in cache.shards)
    return {
        "cache": cache.store.url,
        "root": cache.root_digest(),
        "identity": cache.identity,
        "samples": samples,
        "complete_views": describe(cache.views()),
        "complete": all(not s["missing"] for s in segments) and bool(segments),
        "bytes": sum(sum(s["bytes"].values()) for s in segments),
        "segments": segments,
    }


def _print(report: dict[str, Any]) -> None:
    # In a log nothing is cut off for want of columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    identity = report["identity"]
    teacher, views = identity["teacher"], identity["views"]
    facts = Table(show_header=False, box=None)
    rows = {
        "cache": report["cache"],
        "root": report["root"],
        "samples": f"{report['samples']} in {len(identity['shards'])} shards, blocks of {identity['block_size']}",
        "teacher": f"{teacher['model']}, {teacher['num_classes']} classes, weights {teacher['weights'][:16]}",
        "rendered": f"{identity['render_size']} px, {views['interpolation']}, scale {views['scale']}, "
        f"seed {views['seed']}, policy {views['version']}",
        "complete views": report["complete_views"] or "none",
        "complete": "yes" if report["complete"] else "no",
    }
    for name, value in rows.items():
        facts.add_row(name, str(value))
    console.print(facts)
    table = Table("segment", "views", "shards", "array", "bytes", "bytes a view", "top-1 %", "retained", "loss, nats")
    for s in report["segments"]:
        for i, (array, size) in enumerate(s["bytes"].items()):
            top1 = "" if s["teacher_top1"] is None else f"{100 * s['teacher_top1']:.2f}"
            first = (s["name"], s["span"], f"{s['shards_done']}/{s['shards']}") if i == 0 else ("", "", "")
            last = (top1, f"{s['retained_mass']:.5f}", f"{s['encoding_loss']:.2g}") if i == 0 else ("", "", "")
            table.add_row(*first, array, str(size), f"{size / max(1, s['views']):.1f}", *last)
    console.print(table)
