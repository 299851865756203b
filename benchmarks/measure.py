"""Timing two things fairly: in turn, in one process, by the processor's clock, medians with their spread."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Timing = dict[str, float]

# The command in a process of its own, whether or not it is on the PATH.
KDPIPE = [sys.executable, "-c", "from kdpipe_stages.cli import main; main(prog_name='kdpipe')"]


def core_seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process over a call, all threads together."""
    gc.collect()
    began = time.process_time()
    work()
    return time.process_time() - began


def interleaved(works: dict[str, Callable[[], Any]], repeats: int, per: float) -> dict[str, Timing]:
    """Core-microseconds per unit of each work, run in turn `repeats` times after one warm-up.

    Args:
        works: by name; each call does the same amount.
        repeats: counted rounds.
        per: units in one call.
    """
    return {name: spread(values) for name, values in rounds(works, repeats, per).items()}


def rounds(works: dict[str, Callable[[], Any]], repeats: int, per: float) -> dict[str, list[float]]:
    """Like `interleaved`, but every round's own figure."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            samples[name].append(1e6 * core_seconds(work) / per)
    return samples


def spread(values: list[float]) -> Timing:
    """Median with minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(ours: Timing, theirs: Timing) -> float:
    """Ours over theirs, by medians."""
    return ours["median"] / theirs["median"]
