"""Training the students, several processes at a time; finished runs are read."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdpipe.errors import TargetsError, TrainingError
from kdpipe.trainer import Log, TrainingJob, train


@dataclass(frozen=True)
class Run:
    """One student to train: the loss's label, the seed, the job, the folder."""

    label: str
    seed: int
    job: TrainingJob
    out: Path


@dataclass(frozen=True)
class Outcome:
    """Of a run: top-1 on the validation samples after its last epoch and what it took, or why it can't be.

    `parts` are the loss's means over the last epoch.
    """

    top1: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    refused: str = ""


def run_all(runs: Sequence[Run], jobs: int, log: Log) -> dict[tuple[str, int], Outcome]:
    """Train them all, `jobs` at a time, each in a process of one thread; by label and seed.

    Raises:
        KdpipeError: what isn't about a loss, such as a folder with a run of other settings.
    """
    found: dict[tuple[str, int], Outcome] = {}
    # A fork of a process in which torch has run may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(runs)), mp_context=context) as pool:
        waiting: dict[Future[Outcome], Run] = {pool.submit(run_one, run): run for run in runs}
        try:
            for done in as_completed(waiting):
                run, outcome = waiting[done], done.result()
                found[run.label, run.seed] = outcome
                result = outcome.refused or f"{100 * outcome.top1:.2f} %, {outcome.seconds:.0f} s"
                log(f"[{len(found)}/{len(runs)}] {run.label}, seed {run.seed}: {result}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def run_one(run: Run) -> Outcome:
    """Train one, or read what it gave before."""
    try:
        summary: dict[str, Any] | None = train(run.job, run.out, log=lambda _: None)
    except (TrainingError, TargetsError) as e:
        return Outcome(refused=str(e))
    assert summary is not None
    final = summary["final"]
    return Outcome(final["validation"]["top1"], summary["seconds"], summary["steps"], final["train"])
