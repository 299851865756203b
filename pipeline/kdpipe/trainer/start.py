"""Start or resume a run: the folder, the processes and the plan around the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdpipe._util.fingerprint import differences
from kdpipe.trainer.distributed import joined
from kdpipe.trainer.files import RunFolder
from kdpipe.trainer.loggers import LiveLog
from kdpipe.trainer.loop import OnStep, TrainingLoop
from kdpipe.trainer.prepare import Log, TrainingJob, prepare


def train(
    job: TrainingJob,
    out: str | Path,
    *,
    log: Log = print,
    on_step: OnStep = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
    dvclive: bool = False,
) -> dict[str, Any] | None:
    """Train a student, or resume it where `out` has a checkpoint of the same job.

    Args:
        job: what to train.
        out: folder of the run; see `trainer.files`.
        log: gets remarks, one line each, in the first process only.
        on_step: called after every step, in the first process only.
        stop: called after every step; returns whether to make a checkpoint and leave; of several processes the first
            decides, now and then.
        replace: delete a run of another job in `out` and start again, instead of refusing it.
        dvclive: log each epoch with dvclive too, in the folder dvclive of `out`.

    Returns:
        What summary.json holds; None if it was stopped.

    Raises:
        CheckpointError: `out` holds something else, a checkpoint of another job, or can't be written; or
            another run is writing there.
        TrainingError: the loss is not finite, or the memory doesn't suffice.
        KdpipeError: others, see `prepare`.
    """
    with joined(job.train.device) as ranks:
        if not ranks.first:
            log, on_step = (lambda _: None), (lambda _: None)
        if job.train.threads is not None:
            torch.set_num_threads(job.train.threads)
        folder = RunFolder(out)
        logger = LiveLog(folder.path, dvclive and ranks.first)
        try:
            resuming = ranks.agree(ranks.first and folder.open())
            saved = folder.read_state()["config"] if resuming else None
            # A run that replaces another takes nothing from it, not even the views it started with.
            plan = prepare(job, ranks, log, None if overwrite else saved)
            try:
                if overwrite and saved is not None and differences(plan.identity, saved):
                    log(f"{folder} is of another job and is replaced")
                    resuming = False
                    if ranks.first:
                        logger.clear()
                        folder.clear()
                return TrainingLoop(plan, folder, logger, log, on_step, stop).fit(resuming)
            finally:
                plan.close()
        finally:
            logger.close()
            folder.close()
