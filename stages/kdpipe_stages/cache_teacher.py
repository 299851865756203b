"""`kdpipe cache-teacher`: run the teacher once and keep what it says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from kdpipe._util.machine import cores, limit_malloc_arenas
from kdpipe._util.redact import redact, showable
from kdpipe.cache import Cache
from kdpipe.cache.layout import describe
from kdpipe.cache.manifest import CacheRecord
from kdpipe.caching import CachingProgress as Step
from kdpipe.caching import CachingReport, cache_views
from kdpipe.caching.backend import Backend
from kdpipe.errors import ConfigError
from kdpipe.shards import Index
from kdpipe.targets import Encoding, Quality
from kdpipe.teacher import Teacher, TeacherConfig, devices_here
from kdpipe.views import View
from kdpipe_stages import settings as params
from kdpipe_stages.caching_options import caching_options, overrides, parse_views
from kdpipe_stages.progress import Progress
from kdpipe_stages.signals import resume


@click.command("cache-teacher")
@click.option("--index", "index_path", required=True, help="Index of the shards, from kdpipe index.")
@caching_options
@click.option("--limit", type=int, help="Only the first N samples.")
@click.option("--workers", type=click.IntRange(1), help="Processes on this machine [default: one a GPU].")
@click.option("--scheduler", help="Address of a dask cluster of yours, tls://host:port.")
@click.option(
    "--tls-ca", metavar="FILE", help="Authority of a tls:// cluster's certificates [default: as dask's config]."
)
@click.option("--tls-cert", metavar="FILE", help="This client's certificate for it.")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key.")
@click.option("--calibration-from", metavar="CACHE", help="Take the map's calibration from there; then both merge.")
@click.option("--out", required=True, help="The cache: a folder or URL, {identity} in it filled in; it goes on.")
@click.option("--manifest", help="Also write which targets these are, as JSON without times, for --cache elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@params.options
def cache_teacher(
    index_path: str,
    views: str,
    limit: int | None,
    workers: int | None,
    scheduler: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    calibration_from: str | None,
    out: str,
    manifest: str | None,
    as_json: bool,
    config_file: str | None,
    sets: tuple[str, ...],
    **flags: Any,
) -> None:
    """Run a teacher over augmented views and keep its targets in a cache.

    Tasks already in the cache are skipped: repeat the command after an interruption, or with more views. A task
    that fails is named at the end (exit 1), all others are done.
    """
    limit_malloc_arenas()
    own = {"caching.calibration_from": calibration_from}
    settings = params.load(config_file, sets, overrides(flags) | own)
    index = Index.open(index_path).limit(limit)
    wanted = parse_views(views)
    for remark in settings.views.remarks():
        click.echo(remark, err=True)
    progress: Progress | None = None

    def show(p: Step) -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(p.pending, "views", "caching")
        if p.done:
            progress.advance(p.views, task=f"{p.done}/{p.total}", shard=p.shard)

    tls = (tls_ca, tls_cert, tls_key)
    with backend(settings.teacher, index.num_classes, workers, scheduler, tls) as teacher:
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
    summary = summarise(cache, report, encoding, wanted)
    click.echo(json.dumps(summary) if as_json else _text(summary))
    if report.failed:
        for outcome in report.failed:
            click.echo(f"failed: {showable(f'{outcome.task.shard.name}: {outcome.error}')}", err=True)
        count = f"{len(report.failed)} of {report.tasks + len(report.failed)} tasks failed"
        click.echo(f"{count}; the others are kept. When mended, go on with: {resume()}", err=True)
        raise SystemExit(1)


@contextmanager
def backend(
    config: TeacherConfig,
    num_classes: int | None,
    workers: int | None,
    scheduler: str | None,
    tls: tuple[str | None, str | None, str | None] = (None, None, None),
) -> Iterator[Teacher | Backend]:
    """Who does the tasks: this process, a local cluster of one process a device, or the user's own cluster."""
    if scheduler is not None and workers is not None:
        raise ConfigError("a cluster has its own workers", where="--workers", found=workers, do="Leave it out")
    if scheduler is None and any(tls):
        raise ConfigError(
            "certificates without a cluster", where="--tls-ca, --tls-cert, --tls-key", do="Give --scheduler"
        )
    if scheduler is None and workers is None and (len(devices_here()) == 1 or config.device != "auto"):
        yield Teacher(config, num_classes)
        return
    # dask.distributed takes a second to import, and most runs need none of it.
    from kdpipe.caching.clients import authenticated, local_client, user_client
    from kdpipe.caching.cluster import Cluster

    if scheduler is not None:
        if not authenticated(scheduler):
            click.echo(
                f"remark: {scheduler} takes commands from whoever reaches it, and so do its workers; "
                "on a network that others use, run it with TLS (docs/cluster.md)",
                err=True,
            )
        with user_client(scheduler, *tls) as client:
            click.echo(f"workers: {len(client.nthreads())} now; dashboard: {client.dashboard_link}", err=True)
            yield Cluster(client, config, num_classes)
        return
    devices = devices_here() if config.device == "auto" else [config.device]
    count = len(devices) if workers is None else workers
    if devices == ["cpu"] and config.threads is None:
        threads = max(1, cores() // count)
        config = config.model_copy(update={"threads": threads})
    with local_client(count) as client:
        click.echo(f"workers: {count} processes here", err=True)
        yield Cluster(client, config, num_classes, devices, beside=count)


def summarise(cache: Cache, report: CachingReport, encoding: Encoding, wanted: list[View]) -> dict[str, Any]:
    """What a run did, and what the cache now holds in the segments of the wanted views."""
    quality, size = Quality(), 0
    for segment in cache.segments:
        if segment.encoding == encoding and set(segment.views) & set(wanted):
            quality.add(cache.quality(segment))
            size += cache.bytes(segment)
    return {
        "cache": redact(cache.store.url),
        "cached": describe(cache.views()),
        "input_size": cache.size,
        "tasks": report.tasks,
        "skipped": report.skipped,
        **quality.means(),
        "encoding": encoding.name,
        "calibration": _calibration(cache, encoding),
        "parts": list(cache.parts),
        "bytes": size,
        "bytes_per_view": size / max(1, quality.views),
        "seconds": report.seconds,
        "views_per_second": report.quality.views / report.seconds if report.tasks else None,
        "root": cache.root_digest(),
    }


def _calibration(cache: Cache, encoding: Encoding) -> dict[str, Any] | None:
    """What the map's calibration was fitted to, and the share of the variance that its basis holds."""
    if encoding.map is None or encoding.map.calibration is None:
        return None
    return {"part": encoding.map.calibration, **cache.parts[encoding.map.calibration]["about"]}


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
        loss = f"{s['encoding_loss']:.3g} nats (mean KL to what it said)"
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
