"""A run on many workers, simulated: all is real but for the teacher's forward, which is a sleep as long."""

import asyncio
import io
import logging
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import torch
from distributed import Client, Security
from PIL import Image
from torch import nn

from benchmarks.scheduler import schedule
from benchmarks.workers import CLASSES
from kdpipe._util.silent import SilentWorker
from kdpipe.caching import CachingConfig, CachingProgress, cache_views
from kdpipe.caching.cluster import Cluster
from kdpipe.shards import Index, build_index
from kdpipe.shards.pack import Item, write_shards
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig

# Workers of one process: they sleep most of the time, and what they do besides must not wait for another.
_A_PROCESS = 4
_SIZE = 32
_BATCH = 32  # of the teacher that is measured
# The scheduler's memory is looked at when this share of the tasks is done, and at the end.
_EARLY = 0.1


class Sleeper(nn.Module):
    """Sleeps as long as a teacher would work, give or take a fifth, and has a tiny classifier."""

    def __init__(self, seconds: float, num_classes: int) -> None:
        super().__init__()
        self.seconds, self.head = seconds, nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, 3, S, S)."""
        mean = x.mean(dim=(2, 3))
        # As long for the same view, whichever worker does it.
        time.sleep(self.seconds * random.Random(float(mean.sum())).uniform(0.8, 1.2))
        return self.head(mean)


def sleeper(seconds: float, num_classes: int) -> nn.Module:
    """A Sleeper with weights that are the same everywhere."""
    torch.manual_seed(0)
    return Sleeper(seconds, num_classes)


def simulated(folder: Path, workers: int = 64, tasks: int = 5000, seconds: float | None = None) -> dict[str, Any]:
    """The share of workers' time that goes to the forward, and the scheduler's memory early and late.

    The tasks are real: a shard is read, decoded, rendered, encoded and committed by a dask worker, which a
    scheduler in a process of its own feeds from the client's window. Only the forward of its one sample is a sleep.

    Args:
        folder: for shards and cache.
        workers: single-threaded dask workers, several a process.
        tasks: shards.
        seconds: of a task's forward; measured when None: one batch of 32 at 224 pixels by a ConvNeXt-T on one
            thread here.
    """
    index = _shards(folder, tasks)
    slept = _measured() if seconds is None else seconds
    config = TeacherConfig(
        model="benchmarks.simulated:sleeper",
        model_kwargs={"seconds": slept},
        num_classes=10,
        input_size=_SIZE,
        batch_size=1,
        threads=1,
        device="cpu",
        form="eager",
    )
    memory: list[float] = []
    with _cluster(folder, workers) as (client, scheduler):
        teacher = Cluster(client, config, None)
        teacher.describe()
        began = time.perf_counter()

        def look(p: CachingProgress) -> None:
            if p.done in (round(_EARLY * p.total), p.total):
                memory.append(scheduler.memory_info().rss / 2**20)

        _, report = cache_views(
            str(folder / "simulated.zarr"),
            index,
            ViewsConfig(),
            teacher,
            TargetsConfig(k=4),
            [0],
            caching=CachingConfig(render_threads=1),
            on_progress=look,
        )
        wall = time.perf_counter() - began
    assert (report.tasks, report.failed) == (tasks, [])
    return {
        "busy": tasks * slept / (workers * wall),
        "reference": "workers that do nothing but sleep, without a pause: 1",
        "scheduler_mb_early": memory[0],
        "scheduler_mb_late": memory[-1],
        "seconds_per_task": slept,
        "wall_seconds": wall,
        "tasks": tasks,
        "workers": workers,
    }


def _shards(folder: Path, tasks: int) -> Index:
    """Shards of one sample each."""
    rng = np.random.default_rng(0)
    grey = [_png(rng.integers(0, 256, (8, 8), np.uint8)) for _ in range(256)]
    (folder / "shards").mkdir()
    items = [Item(f"{i:06d}", grey[i % len(grey)], i % 10) for i in range(tasks)]
    write_shards(folder / "shards", "one", items, 1)
    return build_index(str(folder / "shards"), folder / "index", num_classes=10)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _measured() -> float:
    """Seconds of one batch by a real teacher on one thread of this machine."""
    teacher = Teacher(
        TeacherConfig(
            model="benchmarks.workers:untrained", num_classes=CLASSES, batch_size=_BATCH, threads=1, device="cpu"
        )
    )
    views = np.zeros((_BATCH, 224, 224, 3), np.uint8)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        teacher(views)
        times.append(time.perf_counter() - began)
    return min(times)


@contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[tuple[Client, psutil.Process]]:
    """A client of a scheduler and of workers in processes of their own, and the scheduler's process."""
    spawn, file, security = multiprocessing.get_context("spawn"), folder / "scheduler.json", Security.temporary()
    with ExitStack() as stack:

        def start(target: Any, *args: Any) -> int:
            process = spawn.Process(target=target, args=(file, security, *args), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            return int(process.pid or 0)

        scheduler = start(schedule)
        for first in range(0, workers, _A_PROCESS):
            start(_work, min(_A_PROCESS, workers - first))
        client = stack.enter_context(Client(scheduler_file=str(file), security=security))
        client.wait_for_workers(workers, timeout=600)
        yield client, psutil.Process(scheduler)


def _work(file: Path, security: Security, count: int) -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    dask.config.set({"distributed.worker.profile.enabled": False})  # as local clusters of ours have it

    async def run() -> None:
        form: dict[str, Any] = {"scheduler_file": str(file), "nthreads": 1, "memory_limit": 0, "host": "127.0.0.1"}
        workers = [await SilentWorker(**form, security=security) for _ in range(count)]
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(run())
