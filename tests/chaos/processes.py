"""A dask cluster of processes that are forked rather than started, so that a run on one takes seconds."""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdpipe.cache import lease
from tests import children
from tests.chaos.moments import Fault
from tests.chaos.network import FAULT

_PATIENCE = 60.0
# Seconds after which a worker that waits for a stopped one goes on; the scheduler gives that up sooner.
_LEASE = 5.0


@dataclass(frozen=True)
class Forked:
    """A scheduler and workers, as processes of `multiprocessing`."""

    address: str
    scheduler: Any
    workers: list[Any]


@contextlib.contextmanager
def cluster(folder: Path, workers: int, fault: Fault | None = None) -> Iterator[Forked]:
    """A cluster on 127.0.0.1; the first worker that comes to the fault's moment meets it."""
    folder.mkdir(parents=True)
    file = folder / "scheduler.json"
    env = {FAULT: json.dumps(asdict(fault))} if fault else {}
    with contextlib.ExitStack() as stack:

        def start(target: Any, *args: object) -> Any:
            child = children.start(target, *args)
            stack.callback(child.join)
            stack.callback(child.kill)
            return child

        scheduler = start(_schedule, str(file))
        began = time.monotonic()
        while not file.exists():
            assert scheduler.is_alive(), "the scheduler has died"
            assert time.monotonic() - began < _PATIENCE, "the scheduler doesn't start"
            time.sleep(0.01)
        address = json.loads(file.read_text())["address"]
        yield Forked(address, scheduler, [start(_work, address, env) for _ in range(workers)])


def _schedule(file: str) -> None:
    import dask
    from distributed import Scheduler

    _quiet()

    async def run() -> None:
        scheduler = await Scheduler(host="127.0.0.1", port=0, dashboard=False)
        partial = Path(f"{file}.new")
        partial.write_text(json.dumps({"address": scheduler.address}))
        partial.replace(file)
        await scheduler.finished()

    # A worker that stopped answering is given up after seconds instead of minutes.
    with dask.config.set({"distributed.scheduler.worker-ttl": "3s"}):
        asyncio.run(run())


def _work(address: str, env: dict[str, str]) -> None:
    from distributed import Worker

    os.environ.update(env)
    _quiet()
    lease.LEASE = _LEASE

    async def run() -> None:
        worker = await Worker(address, nthreads=1, memory_limit=0, host="127.0.0.1", death_timeout=20)
        await worker.finished()

    asyncio.run(run())


def _quiet() -> None:
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
