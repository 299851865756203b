"""The kinds of faults: by name, what each does to which runs."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.chaos import alone, s3, workers
from tests.chaos.scene import Scene
from tests.chaos.verdict import Run

Kind = Callable[[Path, random.Random], Run]
# Of one process, in any command that writes.
ALONE = ("SIGKILL", "SIGSTOP", "disk full", "I/O error", "file too large", "clock 30 days ahead", "clock 30 days back")
OF_A_WORKER = ("SIGKILL", "SIGSTOP", "disk full", "I/O error")


@contextmanager
def kinds(folder: Path) -> Iterator[dict[str, Kind]]:
    """All of them, on a world made in this folder, and on an S3 server that ends with the context."""
    scene = Scene(folder)
    with ExitStack() as stack:
        served: list[s3.Bucket] = []

        def store(fault: str, place: Path, rng: random.Random) -> Run:
            if not served:
                served.append(stack.enter_context(s3.bucket(scene)))
            return s3.disturbed(served[0], place, rng, fault)

        yield {
            **{f"any command: {fault}": partial(_alone, scene, fault) for fault in ALONE},
            "any command: standard output on a full disk": partial(alone.full_output, scene),
            "two clients at one cache": partial(workers.two_clients, scene),
            "a cache grows while a student reads": partial(workers.growing, scene),
            **{f"dask worker: {fault}": partial(_worker, scene, fault) for fault in OF_A_WORKER},
            "dask scheduler: SIGKILL": partial(workers.scheduler, scene),
            "dask client: SIGKILL": partial(workers.client, scene),
            **{f"S3: {fault}": partial(store, fault) for fault in s3.FAULTS},
            "--workers 2: SIGKILL or SIGSTOP": partial(workers.local, scene),
        }


def _alone(scene: Scene, fault: str, folder: Path, rng: random.Random) -> Run:
    return alone.disturbed(scene, folder, rng, fault)


def _worker(scene: Scene, fault: str, folder: Path, rng: random.Random) -> Run:
    return workers.worker(scene, folder, rng, fault)
