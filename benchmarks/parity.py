"""Parity: a student trained from the cache against one with the teacher beside it, step by step."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from timm import create_model
from timm.task import LogitDistillationTask

from benchmarks.data import RECIPE
from kdpipe.cache import CacheReader
from kdpipe.caching import cache_views
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.losses import Context, LossConfig, StudentOutput
from kdpipe.models import ModelConfig, write_weights
from kdpipe.shards import Index
from kdpipe.targets import Targets, TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import DistillationModule, Step, TrainConfig, build_student
from kdpipe.views import Normalize, ViewsConfig

_CROP = ViewsConfig(seed=1, scale=(0.3, 1.0), crop_pct=1.0)
# Crop and flip alone; and the papers' recipe.
POLICIES = {"crop": _CROP, "recipe": _CROP.model_copy(update={**RECIPE, "mixup": 0.8, "cutmix": 1.0})}
NETWORK: dict[str, Any] = {"patch_size": 4, "depths": [1, 1, 1, 1], "dims": [16, 24, 32, 48]}
# More classes than the digits have, so that the top 16 leave something out.
CLASSES, BATCH, SIZE, K = 100, 32, 32, 16
ENCODINGS = {
    "float32": TargetsConfig(kind="dense", dtype="float32"),
    "float16": TargetsConfig(kind="dense", dtype="float16"),
    f"top{K}": TargetsConfig(kind="topk", k=K),
}


def parity(index: Index, folder: Path, policy: str = "recipe", steps: int = 50, device: str = "cpu") -> dict[str, Any]:
    """Losses of a student trained with the teacher online, and from a cache in each encoding.

    Views are those of a policy of POLICIES.

    Returns:
        `max_loss_difference`: the largest over all steps between dense float32 and online; the same for the
        other encodings in `differences`; `timm_difference`: between our loss and that of timm's
        LogitDistillationTask on the same student, teacher and batches; first and last loss.
    """
    teacher, views = _teacher(folder, device), POLICIES[policy]
    epochs = -(-steps // Loader(index, views, SIZE, BATCH).steps)

    def losses(cache: CacheReader | None) -> list[float]:
        loader = Loader(index, views, SIZE, BATCH, loader=LoaderConfig(), seed=3, cache=cache)
        step = _step(loader.steps, epochs, _online(teacher) if cache is None else _cached(cache), device)
        return _run(loader, step, steps)

    online = losses(None)
    arms = {}
    for name, targets in ENCODINGS.items():
        url = str(folder / f"{name}.zarr")
        cache_views(url, index, views, teacher, targets, range(epochs))
        arms[name] = losses(CacheReader(url, index, views))
    differences = {name: max(abs(a - b) for a, b in zip(online, arm, strict=True)) for name, arm in arms.items()}
    return {
        "max_loss_difference": differences["float32"],
        "differences": differences,
        "timm_difference": _against_timm(index, teacher),
        "policy": policy,
        "steps": steps,
        "first_loss": online[0],
        "last_loss": online[-1],
        "device": device,
    }


def _teacher(folder: Path, device: str) -> Teacher:
    torch.manual_seed(0)
    model = create_model("convnext_atto", num_classes=CLASSES, kernel_sizes=(9, 7, 5, 3), **NETWORK)
    with torch.no_grad():
        for parameter in cast(Any, model).head.fc.parameters():
            parameter.mul_(40)  # as confident as a trained one
    path = folder / "teacher.safetensors"
    write_weights(model, path)
    return Teacher(
        TeacherConfig(
            model="convnext_atto",
            model_kwargs={**NETWORK, "kernel_sizes": [9, 7, 5, 3]},
            weights=str(path),
            num_classes=CLASSES,
            input_size=SIZE,
            batch_size=BATCH,
            device=device,
        )
    )


def _step(updates: int, epochs: int, targets_of: Callable[[Batch], Targets], device: str) -> Step:
    config = TrainConfig(epochs=epochs, batch_size=BATCH, lr=1e-3, warmup_epochs=0, device=device)
    student = ModelConfig(
        model="convnext_atto", model_kwargs={**NETWORK, "kernel_sizes": 3}, num_classes=CLASSES, input_size=SIZE
    )
    distillation = DistillationModule(build_student(student, config), LossConfig(name="kd"))
    return Step(distillation, config, updates=updates, targets_of=targets_of)


def _run(loader: Loader, step: Step, steps: int) -> list[float]:
    losses: list[float] = []
    epoch = 0
    while len(losses) < steps:
        for batch in loader.epoch(epoch):
            losses.append(float(step(batch, len(losses))["loss"]))
            if len(losses) == steps:
                break
        epoch += 1
    return losses


def _online(teacher: Teacher) -> Callable[[Batch], Targets]:
    def targets_of(batch: Batch) -> Targets:
        return Targets.live(teacher(batch.images.cpu().numpy(), batch.erased))

    return targets_of


def _cached(cache: CacheReader) -> Callable[[Batch], Targets]:
    return lambda batch: cache.decode(batch.targets)


def _against_timm(index: Index, teacher: Teacher) -> float:
    """|our loss - timm's| on one batch, with one student and one teacher, at temperature 1 and weights .5."""
    batch = next(Loader(index, _CROP, SIZE, BATCH, seed=3).epoch(0))
    step = _step(1, 1, _online(teacher), "cpu")
    student, model = step.model.eval(), copy.deepcopy(teacher.built.module).cpu()
    x = Normalize(teacher.built.mean, teacher.built.std)(batch.images)
    criterion = torch.nn.CrossEntropyLoss()
    task = LogitDistillationTask(
        student, model, criterion=criterion, task_loss_weight=0.5, device=torch.device("cpu"), verbose=False
    )
    context = Context(len(batch), batch.global_labelled)
    with torch.no_grad():
        theirs = task(x, batch.labels)["loss"]
        targets = Targets(torch.log_softmax(model(x), dim=1), None, dense=True)
        ours = step.distillation.loss(StudentOutput(student(x)), batch.ground_truth, targets, context)["loss"]
    return abs(float(ours) - float(theirs))
