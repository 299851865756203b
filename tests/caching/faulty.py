"""A client to be disturbed: caches a world on two worker processes, or on a cluster that is there already.

python -m tests.caching.faulty INDEX OUT [SCHEDULER]
"""

import os
import sys
import time

import dask
import torch
from distributed import Client
from torch import nn

from pipeline.caching import CachingConfig, cache_views
from pipeline.caching.clients import local_client, user_client
from pipeline.caching.cluster import Cluster
from pipeline.errors import KdpipeError
from pipeline.shards import Index
from pipeline.targets import TargetsConfig
from pipeline.teacher import Teacher, TeacherConfig
from tests.teacher.users import Users
from tests.tiny import CLASSES, RECIPE, SETTINGS, network

VIEWS = (0, 1)


class Slow(nn.Module):
    """A network that takes its time, so that there is some to disturb it in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return self.inner(x)


def slow_network(num_classes: int = CLASSES) -> nn.Module:
    """The tiny network, slowly."""
    return Slow(network(num_classes))


class Dying(Users):
    """Takes its process with it where it is asked about pictures, which a black image is not."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        # Alone: noise, on which features are tried.
        if len(x) == SETTINGS["batch_size"] and float(x.std()) > 1e-3:
            os._exit(9)
        return super().forward_features(x)


def dying(when: str, num_classes: int = CLASSES) -> nn.Module:
    """Dies when it is `built` or `asked`; only for processes that nobody needs."""
    if when == "built":
        os._exit(9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dying("right")


def cache(index: Index, out: str, client: Client | None = None) -> int:
    """Cache; how many tasks failed."""
    config = TeacherConfig.model_validate(SETTINGS | {"model": "tests.caching.faulty:slow_network"})
    who = Teacher(config) if client is None else Cluster(client, config, None)
    caching = CachingConfig(render_threads=1)
    _, report = cache_views(out, index, RECIPE, who, TargetsConfig(k=4), VIEWS, caching=caching)
    return len(report.failed)


def main() -> int:
    """0: done; 1: some tasks failed; 2: refused in one line."""
    index = Index.open(sys.argv[1])
    # A worker that stopped answering is given up after seconds instead of minutes.
    dask.config.set({"distributed.scheduler.worker-ttl": "3s", "distributed.comm.timeouts.connect": "5s"})
    try:
        with user_client(sys.argv[3]) if len(sys.argv) > 3 else local_client(2) as client:
            return 1 if cache(index, sys.argv[2], client) else 0
    except KdpipeError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
