"""`kdpipe cache-teacher`: run the teacher once and cache its outputs."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kdpipe._util.machine import limit_malloc_arenas
from kdpipe._util.redact import showable
from kdpipe_stages.caching_options import caching_options, parse_views
from kdpipe_stages.class_names import compare_class_names
from kdpipe_stages.command import INDEX, JSON, LIMIT
from kdpipe_stages.options import SETTINGS, Given, command, section
from kdpipe_stages.progress import Progress
from kdpipe_stages.signals import resume

if TYPE_CHECKING:
    from kdpipe.caching import CachingProgress


@command(
    "cache-teacher",
    """\
  kdpipe cache-teacher --index runs/train.index --teacher slak_tiny \\
      --weights slak_tiny.pth --views 0:4 --out runs/cache.zarr""",
)
@section("Data", INDEX, LIMIT)
@caching_options
@section("Targets", "caching: calibration_from")
@section(
    "Machines",
    click.option("--workers", type=click.IntRange(1), help="Processes on this machine; by default one a GPU."),
    click.option("--scheduler", metavar="URL", help="Address of your dask cluster, such as tls://host:port."),
    click.option(
        "--tls-ca", metavar="FILE", help="Authority of a tls:// cluster's certificates; by default of dask's config."
    ),
    click.option("--tls-cert", metavar="FILE", help="This client's certificate for the cluster."),
    click.option("--tls-key", metavar="FILE", help="The certificate's private key."),
)
@section(
    "Output",
    click.option(
        "--out",
        metavar="PATH",
        required=True,
        help="The cache: a folder or URL, with {identity} replaced by the identity's digest. An existing one is "
        "resumed or extended.",
    ),
    click.option(
        "--manifest", metavar="FILE", help="Also write a JSON file that names these targets, for --cache elsewhere."
    ),
    JSON,
)
@SETTINGS
def cache_teacher(
    index_path: str,
    views: str,
    limit: int | None,
    workers: int | None,
    scheduler: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    out: str,
    manifest: str | None,
    as_json: bool,
    given: Given,
) -> None:
    """Run a teacher over augmented views and store its outputs in a cache.

    Finished tasks are skipped: repeat the command after an interruption, or with more views. Tasks that fail are
    listed at the end (exit code 1), and all others are kept. Signs of a poor teacher are remarks at the end; with
    --strict those known before the run refuse it; the others end it with exit code 2, and the cache is kept.
    """
    limit_malloc_arenas()
    from kdpipe.cache.manifest import CacheRecord
    from kdpipe.caching import cache_views
    from kdpipe.caching.open_backend import open_backend
    from kdpipe.caching.poor_teacher import refuse
    from kdpipe.caching.summary import summarise
    from kdpipe.shards import Index

    settings = given.load()
    index = Index.open(index_path).limit(limit)
    wanted = parse_views(views)
    compare_class_names(index, settings.teacher.weights)
    for remark in settings.views.remarks():
        click.echo(remark, err=True)
    progress: Progress | None = None

    def show(p: "CachingProgress") -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(p.pending, "views", "caching")
        if p.done:
            progress.advance(p.views, task=f"{p.done}/{p.total}", shard=p.shard)

    def log(text: str) -> None:
        click.echo(text, err=True)

    tls = (tls_ca, tls_cert, tls_key)
    with open_backend(settings.teacher, index.num_classes, workers, scheduler, tls, log) as teacher:
        try:
            cache, report = cache_views(
                out,
                index,
                settings.views,
                teacher,
                settings.targets,
                wanted,
                caching=settings.caching,
                on_progress=show,
            )
        finally:
            if progress is not None:
                progress.close()
    encoding = report.encoding
    assert encoding is not None
    if manifest and not report.failed:
        CacheRecord.of(cache, encoding, wanted).write(manifest)
    summary = summarise(cache, report, encoding, wanted, settings.teacher)
    click.echo(json.dumps(summary) if as_json else _text(summary))
    for remark in summary["remarks"]:
        click.echo(f"remark: {remark}", err=True)
    if report.failed:
        for outcome in report.failed:
            log(f"failed: {showable(f'{outcome.task.shard.name}: {outcome.error}')}")
        count = f"{len(report.failed)} of {report.tasks + len(report.failed)} tasks failed"
        log(f"{count}; the others are kept. When the cause is corrected, resume with: {resume()}")
        raise SystemExit(1)
    if settings.caching.strict:
        refuse(summary["remarks"], summary["cache"])


def _text(s: dict[str, Any]) -> str:
    accuracy = (
        f"teacher top-1 {100 * s['teacher_top1']:.2f} %, top-5 {100 * s['teacher_top5']:.2f} %"
        if s["teacher_top1"] is not None
        else "no labels to score the teacher with"
    )
    rate = f", {s['views_per_second']:.0f} views/s" if s["views_per_second"] else ""
    return (
        f"{s['cache']}: views {s['cached']} at {s['input_size']} pixels; "
        f"{s['tasks']} tasks done, {s['skipped']} were there\n"
        f"{s['views']} views, {s['bytes_per_view']:.1f} bytes a view, {s['seconds']:.1f} s{rate}\n"
        f"{accuracy}\n" + "\n".join(_losses(s))
    )


def _losses(s: dict[str, Any]) -> Iterator[str]:
    """What is lost of each thing that is kept."""
    if s["retained_mass"] is not None:
        loss = f"{s['encoding_loss']:.3g} nats (mean KL to the teacher's output)"
        yield f"retained mass {s['retained_mass']:.6f}, encoding loss {loss}"
    for name in ("pooled", "map"):
        error = s[f"{name}_error"]
        if error is not None:
            yield f"{name}: mean relative squared error {error:.3g}" + (_basis(s) if name == "map" else "")


def _basis(s: dict[str, Any]) -> str:
    c = s["calibration"]
    if c is None or c["rank"] is None:
        return ""
    return f"; {c['rank']} components hold {100 * c['explained']:.2f} % of the variance of {c['views']} views"
