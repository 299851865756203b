"""A client to be disturbed: caches a world on two worker processes, or on a cluster that is there already.

python -m tests.caching.faulty INDEX OUT [SCHEDULER]
"""

import sys
import time

import dask
import torch
from distributed import Client
from torch import nn

from pipeline.caching import CachingConfig, cache_views
from pipeline.caching.cluster import Cluster, local_client, user_client
from pipeline.errors import KdpipeError
from pipeline.shards import Index
from pipeline.targets import TargetsConfig
from pipeline.teacher import Teacher, TeacherConfig
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
