"""Running a cache's tasks: open or create it, find what is missing, do it, commit each task by itself."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import cv2
from pydantic import Field

from pipeline.cache import Cache, Segment, Store, add_segment, create
from pipeline.cache.cache import require_identity
from pipeline.cache.commit import sweep, write_provenance
from pipeline.cache.layout import STORE_RECORD, padded_rows, runs
from pipeline.cache.locks import adding, writing
from pipeline.cache.record import place
from pipeline.caching.backend import Backend, Described, InProcess, Job, Outcome, Task
from pipeline.caching.identity import check_canaries, make_identity, render_canaries
from pipeline.config import Config
from pipeline.errors import IdentityError
from pipeline.fingerprint import differences
from pipeline.shards import Index, images
from pipeline.targets import Encoding, Quality, TargetsConfig
from pipeline.teacher import Teacher
from pipeline.views import View, ViewsConfig
from pipeline.views.block import labelling_index
from pipeline.views.canaries import Pixels

# A task's arrays are in memory until they are written: more views than fit in this become several segments.
_TASK_BYTES = 2**30


class CachingConfig(Config):
    """How a cache is made; nothing here changes what is in it."""

    render_threads: int | None = Field(None, ge=1, description="decode and render threads; default: all cores")
    pixels: Pixels = Field("exact", description="how close an existing cache's canaries must be")


@dataclass
class Report:
    """What `cache_views` did: committed tasks, those that were there, views, quality, bytes, seconds; what failed."""

    tasks: int = 0
    skipped: int = 0
    quality: Quality = field(default_factory=Quality)
    bytes: int = 0
    seconds: float = 0.0
    failed: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """One finished task, for whoever shows progress; the first, with `done` 0, comes before any.

    `views` are those of this task, `pending` those of all the tasks that the run has to do.
    """

    done: int
    total: int
    shard: str
    segment: str
    views: int
    pending: int


def cache_views(
    url: str,
    index: Index,
    config: ViewsConfig,
    teacher: Teacher | Backend,
    targets: TargetsConfig,
    views: Sequence[View],
    *,
    caching: CachingConfig | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Cache, Report]:
    """Make the cache hold the teacher's targets of these views of all samples of the index.

    Tasks that are committed already are skipped, so an interrupted run goes on by repeating it, and asking for
    more views appends a segment. A task that fails doesn't stop the others; the report names it.

    Args:
        url: local folder or fsspec URL; `{identity}` in it stands for 16 digits of the cache's identity.
        index: the samples.
        config: the views' policy and seed.
        teacher: loaded here, or who does the tasks.
        targets: what to keep.
        views: numbers and evaluation views.
        caching: how.
        on_progress: called after every task.

    Raises:
        IdentityError: the cache there is of something else, or a segment was begun with other numerics.
        CacheError: it can't be written, or the workers are gone.
    """
    caching = caching or CachingConfig()
    backend = InProcess(teacher) if isinstance(teacher, Teacher) else teacher
    config = config.cached
    began = time.monotonic()
    index.verify()
    # What can't run fails here, before there is a store.
    described = backend.describe()
    num_classes = int(described.identity["num_classes"])
    labelling_index(index, config).check_labels(num_classes)
    encoding = Encoding.of(targets, num_classes)
    identity = make_identity(index, config, described.identity, int(described.identity["input_size"]))
    store, report = Store(place(url, identity)), Report()
    with writing(store) as writer:
        with adding(store):
            cache = _open(store, index, config, identity, views, caching)
            if writer.alone:
                sweep(cache)
            described = _settled(backend, described, cache, encoding, views, len(index))
            segments = _segments(cache, encoding, list(views), described.numerics)
            todo = _todo(cache, index, segments)
            if todo:
                write_provenance(store, provenance(index, described))
        writer.share()
        report.skipped = len(segments) * len(cache.shards) - len(todo)
        pending = sum(task.shard.samples * len(task.segment.views) for task in todo)
        on_progress(Progress(0, len(todo), "", "", 0, pending))
        job = Job(store.url, index, config, cache.size, caching.render_threads, backend.beside, described)
        # Another run may be at the same cache: what it has finished by now needn't be done twice.
        fresh = (task for task in todo if not store.exists(task.segment.commit(task.shard.name)))
        for done, outcome in enumerate(backend.run(job, fresh), start=1):
            if outcome.record is None:
                report.failed.append(outcome)
                continue
            report.tasks += 1
            report.bytes += sum(f["bytes"] for f in outcome.record["files"].values())
            report.quality.add(outcome.quality)
            task = outcome.task
            on_progress(Progress(done, len(todo), task.shard.name, task.segment.name, outcome.quality.views, pending))
    cache.refresh()
    report.seconds = time.monotonic() - began
    return cache, report


def _open(
    store: Store,
    index: Index,
    config: ViewsConfig,
    identity: dict[str, Any],
    views: Sequence[View],
    caching: CachingConfig,
) -> Cache:
    if not store.exists(STORE_RECORD):
        return create(store, identity, render_canaries(index, config, views, identity["render_size"]))
    cache = Cache(store)
    require_identity(store, identity, cache.identity)
    check_canaries(cache, index, config, caching.pixels)
    return cache


def _settled(
    backend: Backend, described: Described, cache: Cache, encoding: Encoding, views: Sequence[View], samples: int
) -> Described:
    """How the teacher is run from here on: as the cache's last segments were made, if its form allows that.

    Then a run that goes on, and one that adds views, needn't search, and its targets are as those before.
    """
    ours = [s for s in cache.segments if s.encoding == encoding]
    done = {view for s in ours if len(cache.committed(s)) == len(cache.shards) for view in s.views}
    if done >= set(views):
        return described
    layers = described.numerics["layers"] if described.config["form"] != "fastest" else described.config["layers"]
    if layers is None:
        like = [s.numerics for s in cache.segments if not _differences_but_layers(described.numerics, s.numerics)]
        layers = like[-1]["layers"] if like else None
    batches = len(views) * -(-samples // int(described.numerics["batch_size"]))
    return backend.settle(layers, batches)


def _differences_but_layers(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return differences({**ours, "layers": None}, {**theirs, "layers": None})


def _todo(cache: Cache, index: Index, segments: Sequence[Segment]) -> list[Task]:
    shards = {s.name: s for s in index.shards}
    return [
        Task(segment, position, shards[s["name"]])
        for segment in segments
        for position, s in enumerate(cache.shards)
        if (segment.name, s["name"]) not in cache.commits
    ]


def _segments(cache: Cache, encoding: Encoding, views: list[View], numerics: dict[str, Any]) -> list[Segment]:
    """The segments that hold these views: those there are, and a new one for each run of views beyond them."""
    there = [s for s in cache.segments if s.encoding == encoding and set(s.views) & set(views)]
    for segment in there:
        unfinished = len(cache.committed(segment)) < len(cache.shards)
        found = differences(numerics, segment.numerics)
        if unfinished and found:
            name, now, then = found[0]
            raise IdentityError(
                f"a segment was begun with another {name}: results may differ by rounding",
                where=f"{cache.store} segment {segment.name}",
                found=now,
                allowed=then,
                do=f"Go on with --set teacher.{name}={then}",
            )
    covered = {view for s in there for view in s.views}
    rows = padded_rows(cache.shards, int(cache.identity["block_size"]))
    for views_of_one in portions([v for v in views if v not in covered], rows, encoding):
        number = max((s.number for s in cache.segments), default=-1) + 1
        segment = Segment(number, encoding, views_of_one, numerics)
        add_segment(cache, segment)
        there.append(segment)
    return there


def portions(views: list[View], rows: int, encoding: Encoding) -> Iterator[tuple[View, ...]]:
    """Views as segments hold them, whose tasks have arrays of so many padded rows."""
    return runs(views, max(1, _TASK_BYTES // (rows * encoding.nbytes)))


def provenance(index: Index, teacher: Described) -> dict[str, Any]:
    """Where, when and with what a run was done; compared by nobody, but `kdpipe verify` looks there for inputs."""
    packages = ["kdpipe", "torch", "torchvision", "timm", "zarr", "numcodecs", "numpy"]
    return {
        "shards": str(index.path),
        "samples": len(index),
        "teacher": teacher.config,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages} | images.versions() | {"opencv": cv2.__version__},
    }
