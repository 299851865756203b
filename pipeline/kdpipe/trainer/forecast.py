"""How long a student would train, from the cache and with the teacher online."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from kdpipe._util.machine import cores
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.measure import SampleMeasurements
from kdpipe.loader import Batch, Loader
from kdpipe.models import ModelSpec
from kdpipe.teacher import TeacherOutput
from kdpipe.trainer.module import DistillationModule
from kdpipe.trainer.prepare import TrainingJob
from kdpipe.trainer.step import Step, build_student

# Batches that are timed.
_LEAST, _MOST = 2, 20


def forecast_student(
    job: TrainingJob, measured: SampleMeasurements, teacher: ModelSpec, caching: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Load and train on some batches, and multiply by those of all epochs; evaluation is left out.

    Args:
        job: the student, its training and loader; no cache is needed.
        measured: of the teacher on the job's index; its encoding has logits.
        teacher: its size decides whether it takes other renderings than the student when it is online.
        caching: seconds that the cache takes on one worker: low, mid, high.
        seconds: to spend; more where two batches take longer.

    Returns:
        JSON-able; `seconds_cached` and `seconds_online` of one student, `break_even_students`: how many make
        the cache cheaper than the teacher online for each, None where it never is; `read_bytes_per_second`: what
        storage must deliver, shards and targets, so that it isn't the bottleneck.

    Raises:
        TrainingError: the student can't run.
    """
    if job.train.threads is not None:
        torch.set_num_threads(job.train.threads)
    encoding = measured.encoding
    built = build_student(job.student, job.train, encoding.num_classes)
    size, batch, speed = built.input_size, job.train.batch_size, measured.throughput
    # The loss takes no features, so a loader wouldn't read them.
    logits = replace(encoding, pooled=None, map=None)
    step = Step(
        DistillationModule(built, job.loss),
        job.train,
        updates=-(-len(job.index) // batch),
        targets_of=lambda b: logits.decode(b.targets),
    )
    step.dry_run()
    outputs = torch.cat([part.logits[0] for part in measured.sample])
    loads: list[float] = []
    steps: list[float] = []
    began = time.perf_counter()
    for number, (took, images) in enumerate(_batches(job, size)):
        fields = logits.encode(TeacherOutput(outputs[torch.arange(len(images)) % len(outputs)]), images.labels)
        given = replace(images, targets={name: torch.from_numpy(array) for name, array in fields.items()})
        start = time.perf_counter()
        float(step(given, number)["loss"])  # waits for the device
        loads.append(took / len(given))
        steps.append((time.perf_counter() - start) / len(given))
        if number >= _LEAST and (number >= _MOST or time.perf_counter() - began > seconds):
            break
    load, stepping = Estimate.of(loads[1:]), Estimate.of(steps[1:])  # the first allocates
    # Seconds a row: of reading targets; of the teacher's forward; of its own rendering, on one core.
    reading, forward = 1 / measured.writing.read, speed.forward * (1 / speed.batch)
    other = speed.render / speed.batch * measured.threads if teacher.input_size != size else 0.0
    seen = job.train.epochs * len(job.index)
    parallel = step.ranks.device.type == "cuda"
    cached = _together(stepping, load + reading, job.loader.workers, parallel) * seen
    online = _together(stepping + forward, load + other, job.loader.workers, parallel) * seen
    saved = Estimate(*(max(0.0, a - b) for a, b in zip(vars(online).values(), vars(cached).values(), strict=True)))
    stored = next(c for c in measured.candidates if c.encoding == encoding).bytes.mid
    read = job.index.full.bytes / len(job.index.full) + stored * logits.nbytes / encoding.nbytes
    return {
        "model": built.name,
        "input_size": size,
        "epochs": job.train.epochs,
        "batch_size": batch,
        "loader_workers": job.loader.workers,
        "step_seconds": (stepping * batch).json(),
        "load_images_per_second": Estimate.exactly(1).over(load).json(),
        "seconds_cached": cached.json(),
        "seconds_online": online.json(),
        "seconds_saved": saved.json(),
        "break_even_students": Estimate(caching["low"], caching["mid"], caching["high"]).over(saved).json(),
        "read_bytes_per_second": read * seen / cached.mid,
    }


def _together(step: Estimate, load: Estimate, workers: int, parallel: bool) -> Estimate:
    """Seconds an image: loader processes run beside the step, on a CPU at its expense."""
    if workers == 0:
        return step + load
    if not parallel:
        return step + load * (1 / min(workers, cores()))
    pairs = zip(vars(step).values(), vars(load * (1 / workers)).values(), strict=True)
    return Estimate(*(max(pair) for pair in pairs))


def _batches(job: TrainingJob, size: int) -> Iterator[tuple[float, Batch]]:
    """Batches as a loader process makes them, and the seconds that each took; without end."""
    # As many streams and blocks as usual would be read through before the first batch.
    one = job.loader.model_copy(update={"workers": 0, "streams": 1, "window": 1})
    loader = Loader(job.index, job.views, size, job.train.batch_size, loader=one)
    try:
        for epoch in itertools.count():
            start = time.perf_counter()
            for batch in loader.epoch(epoch):
                yield time.perf_counter() - start, batch
                start = time.perf_counter()
    finally:
        loader.close()
