"""Tasks on dask workers, of whichever cluster: `caching.clients`.

The client keeps a bounded number of tasks in flight, so that neither it nor the scheduler holds more than a few at a
time. What a worker does with one: `caching.worker`.
"""

import pickle
from asyncio import CancelledError
from collections.abc import Iterator, Sequence
from typing import Any

from distributed import Client, Future, as_completed
from distributed.client import ClosedClientError, FuturesCancelledError
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from kdpipe._util import remote
from kdpipe.caching.backend import CachingJob, Outcome, Task, TeacherSpec
from kdpipe.caching.worker import TeacherPlugin, describe, require_same
from kdpipe.errors import CacheError, KdpipeError, TeacherError
from kdpipe.targets import Encoding
from kdpipe.teacher import KernelPlan, TeacherConfig
from kdpipe.views import View

# Tasks in flight for each worker: one that it does and one that waits, so that it never does.
_AHEAD = 2
# A task that fails is tried again, on another worker if there is one: machines fail more often than data.
_ATTEMPTS = 3
# What a client meets whose scheduler has died, depending on what it was doing.
_GONE = (CommClosedError, ClosedClientError, CancelledError, FuturesCancelledError)
_REPEAT = "Repeat the command: finished tasks are kept"
# What a worker is doing in each call, by the name of the plugin's method.
_STEPS = {
    "resolve_plan": "finding how the teacher is run fastest",
    "try_extracting": "trying to take the teacher's parts out",
    "extract": "taking the teacher's parts out",
    "try_batch": "trying the teacher on the first batch",
    "calibrate": "fitting the map's calibration",
}


class Cluster:
    """The workers of a dask cluster.

    Args:
        client: connected.
        teacher: which teacher, and how it is run.
        num_classes: used when neither the config nor the weights give it.
        devices: of the numbered workers of a local cluster, in turn; by default that of the config.
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
        try:
            client.register_plugin(TeacherPlugin(teacher.absolute(), num_classes, devices or []))
        except _GONE as e:
            raise CacheError("the cluster is gone before its workers have the teacher", do=_REPEAT) from e

    def describe(self, features: Sequence[str] = ()) -> TeacherSpec:
        """See Backend. Every worker loads its teacher; they must all be the same, run in the same way."""
        try:
            self._client.wait_for_workers(1)
            results = self._client.run(describe, tuple(features), on_error="return")
        except _GONE as e:
            raise CacheError("the scheduler is gone", do=_REPEAT) from e
        first: TeacherSpec | None = None
        for worker, result in results.items():
            if isinstance(result, KdpipeError):
                raise result
            if _unreachable(result):
                raise _died("loading the teacher and trying it", worker) from result
            if not isinstance(result, TeacherSpec):
                raise TeacherError(f"a worker can't load the teacher: {result}", where=worker)
            first = first or result
            require_same(result, first, worker)
        if first is None:
            raise _died("loading its teacher")
        return first

    def resolve_plan(self, layers: KernelPlan | None, batches: int) -> dict[str, Any]:
        """See Backend. One worker measures; the others apply its result with their first task."""
        share = -(-batches // max(1, len(self._client.nthreads())))
        numerics: dict[str, Any] = self._on_one("resolve_plan", layers, share)
        return numerics

    def try_extracting(self, names: Sequence[str]) -> None:
        """See Backend, of one worker."""
        self._on_one("try_extracting", tuple(names))

    def extract(self, job: CachingJob, names: Sequence[str]) -> None:
        """See Backend. One worker writes them: they may be large, and and any worker can write to the cache."""
        self._on_one("extract", pickle.dumps(job), tuple(names))

    def calibrate(self, job: CachingJob, rank: int | None, views: Sequence[View]) -> str:
        """See Backend. One worker fits it, and writes it."""
        name: str = self._on_one("calibrate", pickle.dumps(job), rank, tuple(views))
        return name

    def try_batch(self, job: CachingJob, encoding: Encoding, views: Sequence[View], nondeterministic: bool) -> None:
        """See Backend, of one worker."""
        self._on_one("try_batch", pickle.dumps(job), encoding, tuple(views), nondeterministic)

    def _on_one(self, name: str, *args: Any) -> Any:
        """What the plugin of some worker returns."""
        try:
            # As bytes, which the scheduler does not unpickle: it would import torch for what they hold.
            return self._client.submit(remote.call, name, pickle.dumps(args), pure=False).result()
        except KilledWorker as e:
            raise _died(_STEPS[name], e.last_worker.address, e.allowed_failures + 1) from e
        except _GONE as e:
            raise CacheError("the scheduler is gone", do=_REPEAT) from e

    def run(self, job: CachingJob, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See Backend."""
        try:
            yield from self._run(job, tasks)
        except (*_GONE, TimeoutError) as e:
            raise CacheError("the scheduler is gone", where=job.url, do=_REPEAT) from e

    def _run(self, job: CachingJob, tasks: Iterator[Task]) -> Iterator[Outcome]:
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
                elif isinstance(error, KilledWorker):
                    doing = f"{task.shard.name} of {task.segment.name}"
                    yield Outcome(task, None, _died(doing, error.last_worker.address, error.allowed_failures + 1))
                else:
                    yield Outcome(task, None, error)
            top_up()


def _unreachable(result: Any) -> bool:
    """Whether this is the scheduler's error, not a worker's; errors of files have a number, dask's timeout none."""
    if isinstance(result, CommClosedError | TimeoutError):
        return True
    return type(result) is OSError and result.errno is None


def _died(doing: str, worker: object = None, times: int = 1) -> CacheError:
    """The error for a worker that died, and of so many that did one after the other."""
    return CacheError(
        "a worker died" if times == 1 else f"{times} workers died one after the other",
        where=worker,
        found=doing,
        do="Often it has too little memory: set a smaller teacher.batch_size (--batch-size), or give workers more; "
        "then repeat the command: finished tasks are kept",
    )
