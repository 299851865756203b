"""Running a cache's tasks: open or create it, find what is missing, do it, commit each task by itself."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import cv2

from kdpipe._util.fingerprint import fingerprint
from kdpipe.cache import Cache, Segment, Store, create
from kdpipe.cache.cache import require_identity
from kdpipe.cache.commit import finished, sweep, write_provenance
from kdpipe.cache.layout import STORE_RECORD
from kdpipe.cache.locks import adding, writing
from kdpipe.cache.manifest import place
from kdpipe.caching.backend import Backend, CachingJob, InProcess, Outcome, Task, TeacherSpec
from kdpipe.caching.calibration import BasisReuse, calibrated, have_calibration, reuse_basis
from kdpipe.caching.config import CachingConfig
from kdpipe.caching.identity import check_canaries, make_identity, render_canaries
from kdpipe.caching.modules import parts_of
from kdpipe.caching.poor_teacher import before_run
from kdpipe.caching.segments import requested_layers, segments_for, with_plan
from kdpipe.shards import Index, images
from kdpipe.targets import Encoding, Quality, TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import labelling_index


@dataclass
class CachingReport:
    """What `cache_views` did: committed tasks, those that were there, views, quality, bytes, seconds; what failed.

    `encoding` is that of the segments that hold what was requested; `remarks` are what was known before of the teacher,
    see `poor_teacher.before_run`.
    """

    tasks: int = 0
    skipped: int = 0
    quality: Quality = field(default_factory=Quality)
    bytes: int = 0
    seconds: float = 0.0
    failed: list[Outcome] = field(default_factory=list)
    encoding: Encoding | None = None
    remarks: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count a task that ended."""
        if outcome.record is None:
            self.failed.append(outcome)
            return
        self.tasks += 1
        self.bytes += sum(f["bytes"] for f in outcome.record["files"].values())
        self.quality.add(outcome.quality)


@dataclass(frozen=True)
class CachingProgress:
    """One finished task, for progress bars; the first, with `done` 0, comes before any.

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
    on_progress: Callable[[CachingProgress], None] = lambda _: None,
) -> tuple[Cache, CachingReport]:
    """Make the cache hold the teacher's targets of these views of all samples of the index.

    Tasks that are committed already are skipped, so an interrupted run resumes when it is repeated, and asking for
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
        IdentityError: the cache there, or the one to take a calibration from, is of something else, or a segment was
            started with other numerics.
        TeacherError: the teacher can't do the first batch: see `trial.try_batch`; or `strict`, and it is poor.
        CacheError: it can't be written, a calibration can't be had, or the workers are gone.
    """
    caching = caching or CachingConfig()
    backend = InProcess(teacher) if isinstance(teacher, Teacher) else teacher
    config = config.cached
    began = time.monotonic()
    index.verify()
    # What can't run fails here, before there is a store.
    described = backend.describe(targets.features)
    num_classes = int(described.identity["num_classes"])
    labelling_index(index, config).check_labels(num_classes)
    remarks = before_run(TeacherConfig.model_validate(described.config), num_classes, index, strict=caching.strict)
    encoding = Encoding.of(targets, num_classes, described.shapes)
    size, chance = int(described.identity["input_size"]), caching.allow_nondeterministic
    identity = make_identity(index, config, described.identity, size, nondeterministic=chance)
    reuse = reuse_basis(caching.calibration_from, identity, encoding, views) if caching.calibration_from else None
    store, report = Store(place(url, identity)), CachingReport(remarks=remarks)
    batches = -(-len(index) // int(described.numerics["batch_size"]))  # of each view
    where = store.url, fingerprint(identity)
    job_of = partial(CachingJob, *where, index, config, size, caching.render_threads, backend.beside)
    searched = not store.exists(STORE_RECORD)
    if searched:  # before any lock is held: it may take minutes
        backend.try_extracting(parts_of(targets))
        described = replace(described, numerics=backend.resolve_plan(requested_layers(described), len(views) * batches))
        backend.try_batch(job_of(described), encoding, views, chance)
    with writing(store) as writer:
        with adding(store):
            cache = _open(store, index, config, identity, views, caching)
            if writer.alone:
                sweep(cache)
            encoding = calibrated(cache, encoding, views, reuse)
            described = with_plan(backend, described, cache, encoding, views, None if searched else batches)
            # The identity is the same but for names of classes, which the cache or the index may lack.
            job = replace(job_of(described), identity=cache.identity_digest)
            if not searched and _unfinished(cache, encoding, views):
                backend.try_batch(job, encoding, views, chance)
            encoding = report.encoding = _store_parts(backend, job, cache, encoding, parts_of(targets), views, reuse)
            segments = segments_for(cache, encoding, list(views), described.numerics)
            todo = _todo(cache, index, segments)
            if todo:
                write_provenance(store, provenance(index, described))
        writer.share()
        report.skipped = len(segments) * len(cache.shards) - len(todo)
        pending = sum(task.shard.samples * len(task.segment.views) for task in todo)
        on_progress(CachingProgress(0, len(todo), "", "", 0, pending))
        # Another run may be at the same cache: what it has finished by now needn't be done twice.
        fresh = (task for task in todo if finished(cache, task.segment, task.position) is None)
        for done, outcome in enumerate(backend.run(job, fresh), start=1):
            report.add(outcome)
            if outcome.record is not None:
                at = outcome.task.shard.name, outcome.task.segment.name
                on_progress(CachingProgress(done, len(todo), *at, outcome.quality.views, pending))
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
    check_canaries(cache, index, config, caching.canary_tolerance)
    return cache


def _store_parts(
    backend: Backend,
    job: CachingJob,
    cache: Cache,
    encoding: Encoding,
    names: Sequence[str],
    views: Sequence[View],
    reuse: BasisReuse | None,
) -> Encoding:
    """Have what the arrays need beside them; the encoding, which names the calibration of its map."""
    missing = [name for name in names if name not in cache.parts]
    if missing:
        backend.extract(job, missing)
    encoding = have_calibration(backend, job, cache, encoding, views, reuse)
    cache.refresh()
    return encoding


def _unfinished(cache: Cache, encoding: Encoding, views: Sequence[View]) -> bool:
    """Whether any task of these views is left to do."""
    names = [s["name"] for s in cache.shards]
    alike = [s for s in cache.segments if s.encoding == encoding and cache.complete(s, names)]
    return not set(views) <= {view for segment in alike for view in segment.views}


def _todo(cache: Cache, index: Index, segments: Sequence[Segment]) -> list[Task]:
    shards = {s.name: s for s in index.shards}
    return [
        Task(segment, position, shards[s["name"]])
        for segment in segments
        for position, s in enumerate(cache.shards)
        if (segment.name, s["name"]) not in cache.commits
    ]


def provenance(index: Index, teacher: TeacherSpec) -> dict[str, Any]:
    """Where, when and with what a run was done; never compared, but `kdpipe verify` looks there for inputs."""
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
