"""Who does the tasks: this process here, workers of a dask cluster in `cluster`. Both have the same methods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kdpipe._util.machine import cores
from kdpipe.cache import Cache, Segment, Store, commit_task
from kdpipe.cache.commit import finished
from kdpipe.cache.locks import writing
from kdpipe.cache.modules import read_calibration
from kdpipe.caching.modules import FitSample, calibrate, extract, try_extracting
from kdpipe.caching.task import run_task
from kdpipe.caching.trial import try_batch
from kdpipe.errors import CacheError, IdentityError, KdpipeError
from kdpipe.shards import Index
from kdpipe.shards.index import Shard
from kdpipe.targets import Encoding, Quality
from kdpipe.teacher import KernelPlan, Teacher, shapes_of
from kdpipe.views import View, ViewsConfig


@dataclass(frozen=True)
class TeacherSpec:
    """What a teacher is and how it is run, as `Teacher` reports it; JSON-able but for nothing.

    `shapes` are those of the features it gives, by name, as `Teacher.shapes` has them.
    """

    identity: dict[str, Any]
    numerics: dict[str, Any]
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, teacher: Teacher, features: Sequence[str] = ()) -> "TeacherSpec":
        """Have a teacher give these features, and look at one black image: what can't run fails here."""
        size = teacher.built.input_size
        teacher.set_features(features)
        output = teacher(np.zeros((1, size, size, 3), np.uint8))
        return cls(teacher.identity(), teacher.numerics(), teacher.config.recorded(), shapes_of(output))


@dataclass(frozen=True)
class CachingJob:
    """What all tasks of a run have in common; goes to the workers, who see the same paths.

    `identity` is the digest of the cache's: where another run has put its own cache meanwhile, nothing is done.
    `threads` render in each task; None for the cores of the machine that does it, divided by the `beside` who do so.
    """

    url: str
    identity: str
    index: Index
    config: ViewsConfig
    size: int
    threads: int | None
    beside: int
    teacher: TeacherSpec

    def open(self) -> Cache:
        """The cache.

        Raises:
            IdentityError: another one is there by now.
            CacheError: see `Cache`.
        """
        cache = Cache(Store(self.url))
        if cache.identity_digest != self.identity:
            raise IdentityError(
                "another run has put its own cache in this one's place",
                where=self.url,
                found=cache.identity_digest[:16],
                allowed=self.identity[:16],
                do="Choose another --out",
            )
        return cache

    def sample(self, views: Sequence[View]) -> FitSample:
        """What calibrations are fitted to."""
        return FitSample(self.index, self.config, views, self.size, self.threads)


@dataclass(frozen=True)
class Task:
    """One shard of one segment; `position` is the shard's in the cache."""

    segment: Segment
    position: int
    shard: Shard


@dataclass(frozen=True)
class Outcome:
    """A task that ended: its commit record, or why it failed."""

    task: Task
    record: dict[str, Any] | None
    error: Exception | None = None

    @property
    def quality(self) -> Quality:
        """What was measured on the way; nothing of a failed task."""
        return Quality(**self.record["quality"]) if self.record else Quality()


class Backend(Protocol):
    """Does tasks with a teacher. `beside` of them share this machine's cores."""

    beside: int

    def describe(self, features: Sequence[str] = ()) -> TeacherSpec:
        """The teacher that will do the tasks, and give these features.

        Raises:
            KdpipeError: it can't be loaded or run, or has no such features.
        """
        ...

    def resolve_plan(self, layers: KernelPlan | None, batches: int) -> dict[str, Any]:
        """Decide how the teacher is run: with these `layers`, or where they are None with the fastest.

        Args:
            layers: see `Teacher.apply_plan`.
            batches: to come; see `Teacher.search`.

        Returns:
            The numerics then.

        Raises:
            KdpipeError: it can't be run like that.
        """
        ...

    def try_extracting(self, names: Sequence[str]) -> None:
        """See `parts.try_extracting`."""
        ...

    def extract(self, job: CachingJob, names: Sequence[str]) -> None:
        """Store parts of the teacher in the job's cache; see `parts.extract`."""
        ...

    def calibrate(self, job: CachingJob, rank: int | None, views: Sequence[View]) -> str:
        """Store a calibration of the teacher's map in the job's cache; see `parts.calibrate`. Returns its name."""
        ...

    def try_batch(self, job: CachingJob, encoding: Encoding, views: Sequence[View], nondeterministic: bool) -> None:
        """Run a job's first batch, whose cache may not be there yet; see `trial.try_batch`."""
        ...

    def run(self, job: CachingJob, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """Do the tasks, taking them from the iterator as room comes up; outcomes come as they end.

        Raises:
            CacheError: nothing can be written, or the workers are gone: going on makes no sense.
        """
        ...


def do(job: CachingJob, task: Task, teacher: Teacher, cache: Cache) -> dict[str, Any]:
    """One task from tar to commit; returns the record that was committed, now or by somebody else meanwhile."""
    committed = finished(cache, task.segment, task.position)
    if committed is not None:
        return committed
    threads = job.threads or max(1, cores() // job.beside)
    with writing(cache.store) as writer:
        writer.share()
        done = run_task(
            job.index,
            job.config,
            teacher,
            task.segment,
            task.shard,
            job.size,
            threads,
            read_calibration(cache, task.segment.encoding),
        )
        return commit_task(cache, task.segment, task.position, *done)


def resolve_plan(teacher: Teacher, layers: KernelPlan | None, batches: int) -> dict[str, Any]:
    """Have a teacher run with these layers, or find the fastest; see Backend."""
    if layers is None:
        teacher.search(batches)
    else:
        teacher.apply_plan(layers)
    return teacher.numerics()


class InProcess:
    """Tasks one after another, here."""

    beside = 1

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def describe(self, features: Sequence[str] = ()) -> TeacherSpec:
        """See Backend."""
        return TeacherSpec.of(self._teacher, features)

    def resolve_plan(self, layers: KernelPlan | None, batches: int) -> dict[str, Any]:
        """See Backend."""
        return resolve_plan(self._teacher, layers, batches)

    def try_extracting(self, names: Sequence[str]) -> None:
        """See Backend."""
        try_extracting(self._teacher, names)

    def extract(self, job: CachingJob, names: Sequence[str]) -> None:
        """See Backend."""
        extract(job.open(), self._teacher, names)

    def calibrate(self, job: CachingJob, rank: int | None, views: Sequence[View]) -> str:
        """See Backend."""
        return calibrate(job.open(), self._teacher, job.sample(views), rank)

    def try_batch(self, job: CachingJob, encoding: Encoding, views: Sequence[View], nondeterministic: bool) -> None:
        """See Backend."""
        try_batch(self._teacher, job.sample(views), encoding, nondeterministic=nondeterministic)

    def run(self, job: CachingJob, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See Backend."""
        cache = job.open()
        for task in tasks:
            try:
                yield Outcome(task, do(job, task, self._teacher, cache))
            except CacheError:
                raise
            except KdpipeError as e:
                yield Outcome(task, None, e)
