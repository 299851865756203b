"""How long a student would train, from the cache and with the teacher beside it."""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kdpipe._util.machine import cores
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.measure import SampleMeasurements
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.estimate.throughput import repeat
from kdpipe.loader import Batch
from kdpipe.models import ModelSpec
from kdpipe.shards import BlockReader
from kdpipe.targets import Encoding
from kdpipe.teacher import TeacherOutput
from kdpipe.trainer.module import DistillationModule
from kdpipe.trainer.prepare import TrainingJob
from kdpipe.trainer.step import Step, build_student
from kdpipe.views.block import paired_index, render_rows


def forecast_student(
    job: TrainingJob,
    measured: SampleMeasurements,
    encoding: Encoding,
    teacher: ModelSpec,
    caching: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Rehearse a student's steps on the sample and extrapolate to its epochs, evaluation left out.

    Args:
        job: the student, its training and loader; no cache is needed.
        measured: of the teacher on the job's index.
        encoding: of the cache; it keeps logits.
        teacher: its size decides what more is rendered when it is asked live.
        caching: seconds that the cache takes on one worker: low, mid, high.
        seconds: to spend, half on loading and half on steps; more where one of them takes longer.

    Returns:
        JSON-able; `seconds_cached` and `seconds_online` of one student, `break_even_students`: how many make
        the cache cheaper than the teacher beside each, None where it never is; `read_bytes_per_second`: what
        storage must deliver, shards and targets, so that it doesn't bind.

    Raises:
        TrainingError: the student can't run.
    """
    if job.train.threads is not None:
        torch.set_num_threads(job.train.threads)
    built = build_student(job.student, job.train, encoding.num_classes)
    size, batch = built.input_size, job.train.batch_size
    load, images = _loading(job, measured.sample, size, seconds / 2)
    updates = -(-len(job.index) // batch)
    distillation = DistillationModule(built, job.loss)
    # The loss takes no features, so a loader wouldn't read them.
    logits = replace(encoding, pooled=None, map=None)
    step = Step(distillation, job.train, updates=updates, targets_of=lambda b: logits.decode(b.targets))
    step.dry_run()
    first = _batch(images, measured.sample, logits, batch)
    numbers = itertools.count()

    def one() -> None:
        parts = step(first, next(numbers))
        if step.ranks.device.type == "cuda":
            torch.cuda.synchronize(step.ranks.device)
        float(parts["loss"])

    one()  # allocates
    stepping = Estimate.of_times(repeat(one, seconds / 2)) * (1 / batch)
    reading, throughput = 1 / measured.writing.read, measured.throughput
    forward = throughput.forward * (1 / throughput.batch)
    other = (throughput.decode + throughput.render) * measured.threads if teacher.input_size != size else 0.0
    images_seen = job.train.epochs * len(job.index)
    parallel = step.ranks.device.type == "cuda"
    cached = _together(stepping, load + reading, job.loader.workers, parallel) * images_seen
    online = _together(stepping + forward, load + other, job.loader.workers, parallel) * images_seen
    saved = Estimate(*(max(0.0, a - b) for a, b in zip(vars(online).values(), vars(cached).values(), strict=True)))
    stored = next(w for w in measured.weights if w.encoding == encoding).numbered.mid
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
        "read_bytes_per_second": read * images_seen / cached.mid,
    }


def _together(step: Estimate, load: Estimate, workers: int, parallel: bool) -> Estimate:
    """Seconds an image: loader processes run beside the step, on a CPU at its expense."""
    if workers == 0:
        return step + load
    if not parallel:
        return step + load * (1 / min(workers, cores()))
    pairs = zip(vars(step).values(), vars(load * (1 / workers)).values(), strict=True)
    return Estimate(*(max(pair) for pair in pairs))


def _loading(
    job: TrainingJob, sample: Sequence[SampledOutputs], size: int, seconds: float
) -> tuple[Estimate, np.ndarray]:
    """Seconds an image on one core, which is a loader process's work; and images, uint8 (n, S, S, 3)."""
    views = range(job.loader.views_per_decode)
    images: list[np.ndarray] = []
    per_image: list[float] = []
    reader = BlockReader(paired_index(job.index, job.views))
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        try:
            for part in itertools.cycle(sample):
                start = time.perf_counter()
                # Whole pieces: of a part of them the partners that are mixed in would count as well.
                pixels = render_rows(reader, job.views, part.rows, views, size, pool).pixels
                per_image.append((time.perf_counter() - start) / (len(part.rows) * len(views)))
                if sum(len(some) for some in images) < job.train.batch_size:
                    images.append(pixels[0])
                if len(per_image) >= 2 and time.perf_counter() - began > seconds:
                    break
        finally:
            reader.close()
    return Estimate.of_times(per_image), np.concatenate(images)


def _batch(images: np.ndarray, sample: Sequence[SampledOutputs], encoding: Encoding, rows: int) -> Batch:
    """A batch of so many rows, repeated where the sample has fewer: it costs the same."""
    logits = torch.cat([part.logits[0] for part in sample])
    labels = torch.cat([part.labels[0] for part in sample])
    at = np.arange(rows) % min(len(images), len(logits))
    fields = encoding.encode(TeacherOutput(logits[at]), labels[at])
    return Batch(
        images=torch.from_numpy(images[at]),
        labels=labels[at],
        rows=torch.arange(rows),
        views=torch.zeros(rows, dtype=torch.int64),
        epoch=0,
        step=0,
        global_rows=rows,
        global_labelled=int((labels[at] >= 0).sum()),
        targets={name: torch.from_numpy(array) for name, array in fields.items()},
    )
