"""Who does the tasks: this process here, workers of a dask cluster in `cluster`. Both answer the same questions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.cache import Cache, Segment, Store, commit_task
from pipeline.cache.locks import writing
from pipeline.cache.records import read_record
from pipeline.caching.task import run_task
from pipeline.errors import CacheError, KdpipeError
from pipeline.machine import cores
from pipeline.shards import Index
from pipeline.shards.index import Shard
from pipeline.targets import Quality
from pipeline.teacher import Plan, Teacher
from pipeline.views import ViewsConfig


@dataclass(frozen=True)
class Described:
    """What a teacher is and how it is run, as `Teacher` says it; JSON-able but for nothing."""

    identity: dict[str, Any]
    numerics: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def of(cls, teacher: Teacher) -> "Described":
        """Describe a teacher, having it look at one black image: what can't run fails here."""
        size = teacher.built.input_size
        teacher(np.zeros((1, size, size, 3), np.uint8))
        return cls(teacher.identity(), teacher.numerics(), teacher.config.absolute().model_dump(mode="json"))


@dataclass(frozen=True)
class Job:
    """What all tasks of a run have in common; goes to the workers, who see the same paths.

    `threads` render in each task; None for the cores of the machine that does it, divided by the `beside` who do so.
    """

    url: str
    index: Index
    config: ViewsConfig
    size: int
    threads: int | None
    beside: int
    teacher: Described


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

    def describe(self) -> Described:
        """The teacher that will do the tasks.

        Raises:
            KdpipeError: it can't be loaded or run.
        """
        ...

    def settle(self, layers: Plan | None, batches: int) -> dict[str, Any]:
        """Decide how the teacher is run: with these `layers`, or where they are None with the fastest.

        Args:
            layers: see `Teacher.obey`.
            batches: to come; see `Teacher.search`.

        Returns:
            The numerics then.

        Raises:
            KdpipeError: it can't be run like that.
        """
        ...

    def run(self, job: Job, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """Do the tasks, taking them from the iterator as room comes up; outcomes come as they end.

        Raises:
            CacheError: nothing can be written, or the workers are gone: going on makes no sense.
        """
        ...


def do(job: Job, task: Task, teacher: Teacher, cache: Cache) -> dict[str, Any]:
    """One task from tar to commit; returns the record that was committed, now or by somebody else meanwhile."""
    committed = task.segment.commit(task.shard.name)
    if cache.store.exists(committed):
        return read_record(cache.store, committed)
    threads = job.threads or max(1, cores() // job.beside)
    with writing(cache.store) as writer:
        writer.share()
        done = run_task(job.index, job.config, teacher, task.segment, task.shard, job.size, threads)
        return commit_task(cache, task.segment, task.position, *done)


def settle(teacher: Teacher, layers: Plan | None, batches: int) -> dict[str, Any]:
    """Have a teacher run with these layers, or find the fastest; see Backend."""
    if layers is None:
        teacher.search(batches)
    else:
        teacher.obey(layers)
    return teacher.numerics()


class InProcess:
    """Tasks one after another, here."""

    beside = 1

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def describe(self) -> Described:
        """See Backend."""
        return Described.of(self._teacher)

    def settle(self, layers: Plan | None, batches: int) -> dict[str, Any]:
        """See Backend."""
        return settle(self._teacher, layers, batches)

    def run(self, job: Job, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See Backend."""
        cache = Cache(Store(job.url))
        for task in tasks:
            try:
                yield Outcome(task, do(job, task, self._teacher, cache))
            except CacheError:
                raise
            except KdpipeError as e:
                yield Outcome(task, None, e)
