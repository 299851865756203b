"""A world with features: a small ConvNeXt as teacher, and a cache of all that it says, exact."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from kdpipe.caching import CachingConfig, cache_views
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig
from kdpipe.shards import Index, build_index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import TrainConfig, TrainingJob
from kdpipe.views import ViewsConfig
from tests.shards.making import write_shards

SIZE, CLASSES = 32, 6
VIEWS = ViewsConfig(seed=5, scale=(0.5, 1.0), crop_pct=1.0, interpolation="bilinear")
TEACHER = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24], "patch_size": 2, "kernel_sizes": 3}
STUDENT = {"channels": [8, 8, 12, 16], "stem_width": 8}
EXACT = TargetsConfig(kind="dense", dtype="float32", pooled="float32", map="float32", tail=True)


def make(folder: Path) -> tuple[Index, Teacher, str]:
    """Samples, the teacher, and the cache."""
    write_shards(folder / "shards", 2, 24, size=40, classes=CLASSES, seed=1, kind="png", name="train")
    index = build_index(str(folder / "shards"), folder / "train.index", block_size=8)
    teacher = make_teacher(folder)
    return index, teacher, make_cache(folder / "exact.zarr", index, teacher)


def make_teacher(folder: Path, seed: int = 0) -> Teacher:
    """A ConvNeXt with weights of a seed, as confident as a trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("convnext_atto", num_classes=CLASSES, **TEACHER)
    with torch.no_grad():
        model.head.fc.weight.mul_(20)
    path = folder / f"teacher{seed}.safetensors"
    save_file(model.state_dict(), path)
    config = TeacherConfig(
        model="convnext_atto",
        model_kwargs=TEACHER,
        weights=str(path),
        num_classes=CLASSES,
        input_size=SIZE,
        batch_size=8,
        device="cpu",
    )
    return Teacher(config)


def make_cache(
    path: Path, index: Index, teacher: Teacher, targets: TargetsConfig = EXACT, views: Any = range(7), **changes: Any
) -> str:
    """Cache views of the policy, with `changes`."""
    policy = VIEWS.model_copy(update=changes)
    cache_views(str(path), index, policy, teacher, targets, views, caching=CachingConfig(render_threads=1))
    return str(path)


def make_job(index: Index, caches: tuple[str, ...], loss: LossConfig, **train: Any) -> TrainingJob:
    """A ResNet of a few thousand weights."""
    how = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 0, "device": "cpu", **train}
    return TrainingJob(
        index=index,
        validation=index,
        caches=caches,
        views=VIEWS,
        student=ModelConfig(model="resnet10t", model_kwargs=STUDENT, num_classes=CLASSES, input_size=SIZE),
        loss=loss,
        train=TrainConfig(**how),
        loader=LoaderConfig(streams=3),
    )


def distributed_job(data: str) -> TrainingJob:
    """The same in every process: no batch statistics. The last batch leaves a process without rows."""
    index = Index.open(Path(data) / "train.index")
    job = make_job(index, (str(Path(data) / "exact.zarr"),), LossConfig(name="dist+rkd+fitnets"), batch_size=47)
    student = ModelConfig(
        model="convnext_atto", model_kwargs={**TEACHER, "dims": [8, 8, 12, 16]}, num_classes=CLASSES, input_size=SIZE
    )
    return job.__class__(**{**vars(job), "student": student})
