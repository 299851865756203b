"""What a dask worker does: it loads the teacher once, does a task from tar to commit by itself, and returns the
commit's record. No pixel and no target ever travels.
"""

import logging
import pickle
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed import WorkerPlugin

from kdpipe._util import remote
from kdpipe._util.fingerprint import differences
from kdpipe._util.machine import limit_malloc_arenas
from kdpipe.cache import Cache
from kdpipe.caching.backend import CachingJob, TeacherSpec, do, resolve_plan
from kdpipe.caching.modules import calibrate, extract, try_extracting
from kdpipe.caching.trial import try_batch
from kdpipe.errors import IdentityError
from kdpipe.targets import Encoding
from kdpipe.teacher import KernelPlan, Teacher, TeacherConfig
from kdpipe.views import View


class TeacherPlugin(WorkerPlugin):
    """Keeps a worker's teacher, loaded when the first task comes, and its open cache."""

    name = remote.PLUGIN

    def __init__(self, config: TeacherConfig, num_classes: int | None, devices: list[str]) -> None:
        self._config, self._num_classes, self._devices = config, num_classes, devices
        self._teacher: Teacher | None = None
        self._described: TeacherSpec | None = None
        self._jobs: dict[bytes, tuple[CachingJob, Cache]] = {}

    def setup(self, worker: Any) -> None:
        """Called by dask in each worker, also in those that come later. Workers of a local cluster are numbered."""
        limit_malloc_arenas()
        self._lock = threading.Lock()  # a worker with several threads, against our advice, is slow but not wrong
        if isinstance(worker.name, int) and worker.name:
            logging.getLogger("kdpipe").setLevel(logging.ERROR)  # remarks come from the first of them
        if self._devices and isinstance(worker.name, int):
            device = self._devices[worker.name % len(self._devices)]
            self._config = self._config.model_copy(update={"device": device})

    def described(self, features: Sequence[str] | None = None) -> TeacherSpec:
        """The teacher, loaded if it isn't yet, that gives these features; by default what it gives."""
        if self._teacher is None:
            self._teacher = Teacher(self._config, self._num_classes)
        if self._described is None or not (features is None or set(features) == set(self._described.shapes)):
            self._described = TeacherSpec.of(self._teacher, features or ())
        return self._described

    def resolve_plan(self, layers: KernelPlan | None, batches: int) -> dict[str, Any]:
        """See Backend, of this worker's teacher."""
        with self._lock:
            described = self.described()
            assert self._teacher is not None
            self._described = replace(described, numerics=resolve_plan(self._teacher, layers, batches))
            return self._described.numerics

    def do(self, packed: bytes, task: bytes) -> dict[str, Any]:
        """A pickled Task of a pickled CachingJob, with the teacher that its run was started with."""
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

    def try_batch(self, packed: bytes, encoding: Encoding, views: Sequence[View], nondeterministic: bool) -> None:
        """See Backend; the job is pickled."""
        job: CachingJob = pickle.loads(packed)
        require_same(self.described(), job.teacher, socket.gethostname())
        try_batch(self._prepared(job), job.sample(views), encoding, nondeterministic=nondeterministic)

    def _begin(self, packed: bytes) -> tuple[CachingJob, Teacher, Cache]:
        """A job, and the teacher as it is to be run in it."""
        if packed not in self._jobs:
            new: CachingJob = pickle.loads(packed)
            require_same(self.described(), new.teacher, socket.gethostname())
            self._jobs[packed] = new, new.open()
        job, cache = self._jobs[packed]
        return job, self._prepared(job), cache

    def _prepared(self, job: CachingJob) -> Teacher:
        """The teacher as it is to be run in a job."""
        # As one worker found for all; the last task may have been of another job.
        with self._lock:
            self.described(tuple(job.teacher.shapes))
        self.resolve_plan(job.teacher.numerics["layers"], 0)
        assert self._teacher is not None
        return self._teacher


def describe(features: tuple[str, ...], dask_worker: Any) -> TeacherSpec:
    """On a worker, to which dask passes itself: its teacher, that gives these features."""
    plugin = dask_worker.plugins[remote.PLUGIN]
    assert isinstance(plugin, TeacherPlugin)
    return plugin.described(features)


def require_same(ours: TeacherSpec, theirs: TeacherSpec, worker: str) -> None:
    """Refuse a worker whose teacher is another one, or is run in another way. Each job gives the kernels of its layers.

    Raises:
        IdentityError: naming the first difference.
    """
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
