"""Two workers of a local dask cluster against two raw processes that do nothing but the teacher's forward."""

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import spread
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.caching.clients import local_client
from kdpipe.caching.cluster import Cluster
from kdpipe.models.build import build
from kdpipe.shards import Index, build_index
from kdpipe.shards.prepare import prepare_digits
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import TeacherConfig
from kdpipe.views import ViewsConfig

MODEL, CLASSES, BATCH = "convnext_tiny", 1000, 16
# Of the digits: a batch each, so that neither side waits longer than one batch for the last of its own.
_TASKS_A_WORKER = 12


def untrained(**kwargs: Any) -> torch.nn.Module:
    """A published architecture with random weights, the same everywhere: only its speed counts."""
    import timm

    torch.manual_seed(0)
    return timm.create_model(MODEL, **kwargs)


def workers(
    index: Index | None, folder: Path, workers: int = 2, size: int = 224, repeats: int = 3, limit: int | None = None
) -> dict[str, Any]:
    """Samples a second of `cache-teacher --workers N` against N processes with one thread each that only forward.

    Ours reads, decodes, renders, encodes and commits besides, all on the same cores, so the bound is what all of
    that and the cluster may cost. The control runs the same network in plain PyTorch on float tensors that lie
    ready, as many batches as ours. Teachers are loaded and have run before the clock starts; wall time, in turn.

    Args:
        index: samples in several shards; None for the digits, a few shards a worker.
        folder: for caches.
        workers: processes of each side.
        size: views' side, pixels.
        repeats: rounds.
        limit: of the digits' samples.
    """
    if index is None:
        index = _digits(folder, workers, limit or _TASKS_A_WORKER * workers * BATCH)
    config = TeacherConfig(
        model="benchmarks.workers:untrained",
        num_classes=CLASSES,
        input_size=size,
        batch_size=BATCH,
        threads=1,
        form="eager",
    )
    batches = sum(-(-len(index.rows(block)) // BATCH) for block in range(index.blocks))
    times: dict[str, list[float]] = {"ours": [], "control": []}
    with local_client(workers) as client, _control(workers, config) as control:
        teacher = Cluster(client, config, CLASSES, beside=workers)
        teacher.describe()
        for number in range(repeats + 1):
            began = time.perf_counter()
            cache_views(
                str(folder / f"{number}.zarr"),
                index,
                ViewsConfig(),
                teacher,
                TargetsConfig(),
                [0],
                caching=CachingConfig(render_threads=1),
            )
            between = time.perf_counter()
            control(batches)
            times["ours"].append(between - began)
            times["control"].append(time.perf_counter() - between)
    seconds = {name: of[1:] for name, of in times.items()}  # the first round allocates
    return {
        "ratio": spread([c / o for o, c in zip(seconds["ours"], seconds["control"], strict=True)]),
        "samples_per_second": spread([len(index) / s for s in seconds["ours"]]),
        "reference": "as many processes that run the same network on tensors, and nothing else",
        "reference_samples_per_second": spread([len(index) / s for s in seconds["control"]]),
        "tasks": len(index.shards),
        "workers": workers,
        "teacher": MODEL,
        "size": size,
        "samples": len(index),
        "repeats": repeats,
    }


def _digits(folder: Path, workers: int, samples: int) -> Index:
    per_shard = -(-samples // (_TASKS_A_WORKER * workers))
    prepare_digits(folder / "digits", samples_per_shard=per_shard)
    made = build_index(str(folder / "digits" / "train"), folder / "digits.index", num_classes=10)
    return made.limit(min(samples, len(made)))


@contextmanager
def _control(workers: int, config: TeacherConfig) -> Iterator[Any]:
    """A function that has N processes do so many batches between them, however they share them, and waits."""
    spawn = multiprocessing.get_context("spawn")
    next_batch = spawn.Value("l", 0)
    pipes = [spawn.Pipe() for _ in range(workers)]
    processes = [spawn.Process(target=_forward, args=(theirs, next_batch, config), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()

    def run(batches: int) -> None:
        next_batch.value = 0
        for ours, _ in pipes:
            ours.send(batches)
        for ours, _ in pipes:
            ours.recv()

    try:
        run(workers)
        yield run
    finally:
        for process in processes:
            process.kill()
            process.join()


def _forward(pipe: Connection, next_batch: Any, config: TeacherConfig) -> None:
    torch.set_num_threads(1)
    model = build(config).module.eval().to(memory_format=torch.channels_last)
    assert config.input_size is not None
    x = torch.randn(BATCH, 3, config.input_size, config.input_size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        while True:
            batches = pipe.recv()
            for _ in itertools.count():
                with next_batch.get_lock():
                    mine = next_batch.value
                    next_batch.value += 1
                if mine >= batches:
                    break
                model(x)
            pipe.send(None)
