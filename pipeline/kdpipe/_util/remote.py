"""What a dask scheduler has to import of ours to pass tasks on: next to nothing.

A scheduler unpickles the function of every task. Were it in a module that needs torch, the scheduler would load that
first, for seconds in which no request is served.
"""

import pickle
from typing import Any

PLUGIN = "kdpipe-teacher"


def do(job: bytes, task: bytes) -> Any:
    """On a worker: have its plugin do a task of a job, both pickled, and return the commit record."""
    from distributed import get_worker

    return get_worker().plugins[PLUGIN].do(job, task)  # type: ignore[attr-defined]


def call(name: str, args: bytes) -> Any:
    """On a worker: have its plugin do what else it can, by the name of its method; the arguments are pickled."""
    from distributed import get_worker

    return getattr(get_worker().plugins[PLUGIN], name)(*pickle.loads(args))
