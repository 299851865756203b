"""Tasks on dask workers: a local cluster of one process a device, or whatever cluster the user runs.

A worker loads the teacher once, does a task from tar to commit by itself, and answers with the commit's record: no
pixel and no target ever travels. The client keeps a bounded number of tasks in flight, so that neither it nor the
scheduler knows more than a few at a time.
"""

import logging
import pickle
import socket
import threading
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, WorkerPlugin, as_completed
from distributed.client import ClosedClientError, FuturesCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from pipeline import remote
from pipeline.cache import Cache, Store
from pipeline.caching.backend import Described, Job, Outcome, Task, do, settle
from pipeline.caching.parts import calibrate, extract, try_extracting
from pipeline.errors import CacheError, IdentityError, KdpipeError, TeacherError
from pipeline.fingerprint import differences
from pipeline.machine import few_arenas
from pipeline.teacher import Plan, Teacher, TeacherConfig
from pipeline.views import View

# Tasks in flight for each worker: one that it does and one that waits, so that it never does.
_AHEAD = 2
# A task that fails is tried again, on another worker if there is one: machines fail more often than data.
_ATTEMPTS = 3
# What a client meets whose scheduler has died, depending on what it was doing.
_GONE = (CommClosedError, ClosedClientError, CancelledError, FuturesCancelledError)


class TeacherPlugin(WorkerPlugin):
    """Keeps a worker's teacher, loaded when the first task comes, and its open cache."""

    name = remote.PLUGIN

    def __init__(self, config: TeacherConfig, num_classes: int | None, devices: list[str]) -> None:
        self._config, self._num_classes, self._devices = config, num_classes, devices
        self._teacher: Teacher | None = None
        self._described: Described | None = None
        self._jobs: dict[bytes, tuple[Job, Cache]] = {}

    def setup(self, worker: Any) -> None:
        """Called by dask in each worker, also in those that come later. Workers of a local cluster are numbered."""
        few_arenas()
        self._lock = threading.Lock()  # a worker with several threads, against our advice, is slow but not wrong
        if self._devices and isinstance(worker.name, int):
            device = self._devices[worker.name % len(self._devices)]
            self._config = self._config.model_copy(update={"device": device})

    def described(self, features: Sequence[str] | None = None) -> Described:
        """The teacher, loaded if it isn't yet, that gives these features; by default what it gives."""
        if self._teacher is None:
            self._teacher = Teacher(self._config, self._num_classes)
        if self._described is None or not (features is None or set(features) == set(self._described.shapes)):
            self._described = Described.of(self._teacher, features or ())
        return self._described

    def settle(self, layers: Plan | None, batches: int) -> dict[str, Any]:
        """See Backend, of this worker's teacher."""
        with self._lock:
            described = self.described()
            assert self._teacher is not None
            self._described = replace(described, numerics=settle(self._teacher, layers, batches))
            return self._described.numerics

    def do(self, packed: bytes, task: bytes) -> dict[str, Any]:
        """A pickled Task of a pickled Job, with the teacher that its run was begun with."""
        job, teacher, cache = self._begin(packed)
        return do(job, pickle.loads(task), teacher, cache)

    def try_extracting(self, names: Sequence[str]) -> None:
        """See Backend, of this worker's teacher."""
        self.described()
        assert self._teacher is not None
        try_extracting(self._teacher, names)

    def extract(self, packed: bytes, names: Sequence[str]) -> None:
        """See Backend; the job is pickled."""
        _, teacher, cache = self._begin(packed)
        extract(cache, teacher, names)

    def calibrate(self, packed: bytes, rank: int | None, views: Sequence[View]) -> str:
        """See Backend; the job is pickled."""
        job, teacher, cache = self._begin(packed)
        return calibrate(cache, teacher, job.sample(views), rank)

    def _begin(self, packed: bytes) -> tuple[Job, Teacher, Cache]:
        """A job, and the teacher as it is to be run in it."""
        if packed not in self._jobs:
            job: Job = pickle.loads(packed)
            _require_same(self.described(), job.teacher, socket.gethostname())
            self._jobs[packed] = job, Cache(Store(job.url))
        assert self._teacher is not None
        job, cache = self._jobs[packed]
        # As one worker found for all; the last task may have been of another job.
        with self._lock:
            self.described(tuple(job.teacher.shapes))
        self.settle(job.teacher.numerics["layers"], 0)
        return job, self._teacher, cache


class Cluster:
    """The workers of a dask cluster.

    Args:
        client: connected.
        teacher: which teacher, and how it is run.
        num_classes: used when neither the config nor the weights say.
        devices: of the numbered workers of a local cluster, in turn; by default as the config says.
        beside: workers that share this machine's cores.
    """

    def __init__(
        self,
        client: Client,
        teacher: TeacherConfig,
        num_classes: int | None,
        devices: list[str] | None = None,
        beside: int = 1,
    ) -> None:
        self._client, self.beside = client, beside
        client.register_plugin(TeacherPlugin(teacher.absolute(), num_classes, devices or []))

    def describe(self, features: Sequence[str] = ()) -> Described:
        """See Backend. Every worker loads its teacher; they must all be the same, run in the same way."""
        self._client.wait_for_workers(1)
        answers = self._client.run(_describe, tuple(features), on_error="return")
        first: Described | None = None
        for worker, answer in answers.items():
            if isinstance(answer, KdpipeError):
                raise answer
            if not isinstance(answer, Described):
                raise TeacherError(f"a worker can't load the teacher: {answer}", where=worker)
            first = first or answer
            _require_same(answer, first, worker)
        assert first is not None
        return first

    def settle(self, layers: Plan | None, batches: int) -> dict[str, Any]:
        """See Backend. One worker finds out; the others do as it found when their first task tells them."""
        share = -(-batches // max(1, len(self._client.nthreads())))
        numerics: dict[str, Any] = self._on_one("settle", layers, share)
        return numerics

    def try_extracting(self, names: Sequence[str]) -> None:
        """See Backend, of one worker."""
        self._on_one("try_extracting", tuple(names))

    def extract(self, job: Job, names: Sequence[str]) -> None:
        """See Backend. One worker writes them: they may be large, and it is at the cache as well as anybody."""
        self._on_one("extract", pickle.dumps(job), tuple(names))

    def calibrate(self, job: Job, rank: int | None, views: Sequence[View]) -> str:
        """See Backend. One worker fits it, and writes it."""
        name: str = self._on_one("calibrate", pickle.dumps(job), rank, tuple(views))
        return name

    def _on_one(self, name: str, *args: Any) -> Any:
        """What the plugin of some worker answers."""
        try:
            return self._client.submit(remote.call, name, *args, pure=False).result()
        except _GONE as e:
            raise CacheError("the scheduler is gone", do="Repeat the command: finished tasks are kept") from e

    def run(self, job: Job, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See Backend."""
        try:
            yield from self._run(job, tasks)
        except (*_GONE, TimeoutError) as e:
            raise CacheError(
                "the scheduler is gone", where=job.url, do="Repeat the command: finished tasks are kept"
            ) from e

    def _run(self, job: Job, tasks: Iterator[Task]) -> Iterator[Outcome]:
        # As bytes: else the scheduler would unpickle it for every task, and so would the workers; and opening a large
        # index takes longer than all the rest of scheduling.
        packed = pickle.dumps(job)
        flying: dict[Future, tuple[Task, int]] = {}
        ended = as_completed([], loop=self._client.loop, raise_errors=False)

        def submit(task: Task, attempt: int) -> None:
            future = self._client.submit(remote.do, packed, pickle.dumps(task), pure=False)
            flying[future] = (task, attempt)
            ended.add(future)

        def top_up() -> None:
            room = _AHEAD * max(1, len(self._client.nthreads())) - len(flying)
            for _, task in zip(range(room), tasks, strict=False):
                submit(task, 1)

        top_up()
        for future in ended:
            task, attempt = flying.pop(future)
            if future.status in ("cancelled", "lost") or self._client.status != "running":
                raise CommClosedError(f"task {future.status}, client {self._client.status}")
            if future.status == "finished":
                yield Outcome(task, future.result())
            else:
                error = future.exception()
                if isinstance(error, _GONE):
                    raise error
                if attempt < _ATTEMPTS and not isinstance(error, KilledWorker):
                    submit(task, attempt + 1)
                elif type(error) is CacheError:
                    raise error  # A full disk is full for all: stop computing what can't be kept.
                else:
                    yield Outcome(task, None, error)
            top_up()


@contextmanager
def local_client(workers: int) -> Iterator[Client]:
    """A client of a cluster of single-threaded processes on this machine, which ends with the context."""
    # dask looks at what its workers execute a hundred times a second, for a page that nobody opens here.
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # The teacher's memory is the user's affair; dask would kill a worker that comes near its share.
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            # A task that fails is reported by the client, in one line.
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def user_client(address: str) -> Iterator[Client]:
    """A client of a cluster that the user runs.

    Raises:
        CacheError: nobody answers there.
    """
    try:
        client = Client(address)
    except (OSError, ValueError) as e:  # dask raises both, with its own words
        raise CacheError(
            f"no dask scheduler answers: {e}", where=address, do="Start one with dask scheduler, or mend the address"
        ) from e
    with client:
        yield client


def _describe(features: tuple[str, ...], dask_worker: Any) -> Described:
    return _plugin(dask_worker).described(features)


def _plugin(worker: Any) -> TeacherPlugin:
    plugin = worker.plugins[remote.PLUGIN]
    assert isinstance(plugin, TeacherPlugin)
    return plugin


def _require_same(ours: Described, theirs: Described, worker: str) -> None:
    """Refuse a worker whose teacher is another one, or is run in another way. Its layers are as each job says."""
    numerics = ({**one.numerics, "layers": {}} for one in (ours, theirs))
    for mine, other in ((ours.identity, theirs.identity), tuple(numerics)):
        found = differences(mine, other)
        if found:
            name, here, there = found[0]
            raise IdentityError(
                f"this worker's teacher has another {name}",
                where=worker,
                found=here,
                allowed=there,
                do=f"Give all workers the same weights and devices, or set teacher.{name}",
            )
