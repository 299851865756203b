"""Parity: each loss for some steps, from an exact cache and with the teacher online."""

from pathlib import Path
from typing import Any

import torch

from kdpipe.caching import CachingConfig, cache_views
from kdpipe.fidelity.loss_cases import LossCase
from kdpipe.fidelity.setup import Setup
from kdpipe.fidelity.student import Student
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.targets import Targets, TargetsConfig
from kdpipe.trainer import DistillationModule, Step, TrainConfig
from kdpipe.trainer.teachers import Teachers

STEPS, BATCH, SAMPLES = 20, 16, 64


def differences(
    setup: Setup, student: Student, cases: list[LossCase], folder: Path, steps: int = STEPS
) -> dict[str, float]:
    """The largest difference of the two losses over the steps, relative to the loss where it is above 1, by name.

    The losses have their usual hyperparameters, labels' terms included.
    """
    index, teacher = setup.index.limit(min(SAMPLES, len(setup.index))), setup.teacher
    epochs = -(-steps // -(-len(index) // BATCH))
    features: dict[str, Any] = {name: "float32" for name in ("pooled", "map") if name not in setup.lacks}
    exact = TargetsConfig(kind="dense", dtype="float32", tail="tail" not in setup.lacks, **features)
    url, given = str(folder / "exact.zarr"), teacher.features
    cache_views(url, index, setup.views, teacher, exact, range(epochs), caching=CachingConfig(render_threads=1))
    teacher.set_features(given)

    def live(batch: Batch) -> Targets:
        return Targets.live(teacher(batch.images.numpy(), batch.erased))

    def losses(case: LossCase, cached: Teachers, targets_of: Any) -> list[float]:
        loader = Loader(index, setup.views, teacher.built.input_size, BATCH, seed=3, cache=cached.reader)
        torch.manual_seed(1)
        how = TrainConfig(epochs=epochs, batch_size=BATCH, lr=1e-3, warmup_epochs=0, device="cpu")
        distillation = DistillationModule(student.fresh(), case.usual, cached.info())
        step = Step(distillation, how, updates=loader.steps, targets_of=targets_of)
        batches = (batch for epoch in range(epochs) for batch in loader.epoch(epoch))
        return [float(step(batch, number)["loss"]) for number, batch in zip(range(steps), batches, strict=False)]

    def apart(case: LossCase) -> float:
        cached = Teachers(
            (url,), index, setup.views, case.usual, LoaderConfig(), setup.info.num_classes, lambda _: None
        )
        online, offline = (losses(case, cached, of) for of in (live, cached.targets_of))
        scale = max(1.0, *map(abs, online))
        return max(abs(a - b) for a, b in zip(online, offline, strict=True)) / scale

    return {case.name: apart(case) for case in cases}
