"""A teacher of a thousand synthetic classes with real errors: trained here to read the numbers 000 to 999."""

from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.synthetic import CLASSES, SIZE, prepare_synthetic
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig, write_weights
from kdpipe.models.build import build
from kdpipe.shards import Index, build_index
from kdpipe.trainer import Log, TrainConfig, TrainingJob, train
from kdpipe.views import ViewsConfig

# A digit fills its place, and a mirrored 2 is no 2.
VIEWS = ViewsConfig(seed=0, scale=(0.5, 1.0), hflip=0.0, interpolation="bilinear", crop_pct=1.0)
_NETWORK = {
    "patch_size": 2,
    "output_stride": 16,
    "depths": [1, 1, 2, 1],
    "dims": [32, 64, 96, 128],
    "kernel_sizes": [7, 5, 3, 3],
    "ls_init_value": 1.0,
}
TEACHER = ModelConfig(
    model="convnext_atto",
    model_kwargs=_NETWORK,
    num_classes=CLASSES,
    input_size=SIZE,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
EPOCHS = 6


def synthetic_index(folder: Path) -> dict[str, Index]:
    """Shards of the synthetic classes and their indexes, `train` and `val`."""
    prepare_synthetic(folder / "synthetic")
    places = {name: str(folder / "synthetic" / name) for name in ("train", "val")}
    return {n: build_index(place, folder / f"{n}.index", num_classes=CLASSES) for n, place in places.items()}


def train_synthetic_teacher(folder: Path, indexes: dict[str, Index], log: Log, epochs: int = EPOCHS) -> str:
    """Train the teacher in minutes; returns where its weights are."""
    first = folder / "first.safetensors"
    _initialise(first)
    job = TrainingJob(
        index=indexes["train"],
        validation=indexes["val"],
        views=VIEWS,
        student=TEACHER.model_copy(update={"weights": str(first)}),
        loss=LossConfig(name="none"),
        train=TrainConfig(epochs=epochs, batch_size=64, lr=2e-3, warmup_epochs=min(1, epochs / 2), device="cpu"),
        loader=LoaderConfig(),
    )
    train(job, folder / "teacher", log=log)
    return str(folder / "teacher" / "best.safetensors")


def _initialise(path: Path) -> None:
    """Weights in which numbers that share a digit share a part of their rows of the classifier.

    With random rows nothing is learned for ten epochs: a thousand classes of twenty images have to find out by
    themselves that they are made of the same ten digits.
    """
    torch.manual_seed(0)
    module = build(TEACHER).module
    weight: torch.Tensor = cast(Any, module).head.fc.weight
    parts, number = 0.15 * torch.randn(3, 10, weight.shape[1]), torch.arange(CLASSES)
    with torch.no_grad():
        weight.copy_(parts[0][number // 100] + parts[1][number // 10 % 10] + parts[2][number % 10])
    write_weights(module, path)
