"""A world small enough for tests: shards, an index, a teacher that takes milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdpipe.cache import Cache, Segment, commit_task
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.shards import Index, build_index
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig
from tests.shards.making import write_shards

CLASSES = 7
SIZE = 16
VIEWS = ViewsConfig(seed=3, interpolation="bilinear", crop_pct=1.0)
# The papers' recipe: everything at once.
RECIPE = ViewsConfig(
    seed=3,
    crop_pct=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
    re_prob=0.25,
    re_mode="pixel",
    mixup=0.8,
    cutmix=1.0,
)
POLICIES = {"plain": VIEWS, "recipe": RECIPE}

SETTINGS = {
    "model": "tests.tiny:network",
    "num_classes": CLASSES,
    "input_size": SIZE,
    "batch_size": 8,
    "threads": 1,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}


def network(num_classes: int = CLASSES, width: int = 8, seed: int = 0) -> nn.Module:
    """A convolution and a linear layer with weights of their own; a factory as users write one."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    return model


def teacher(**changes: object) -> Teacher:
    """The tiny network as a teacher on one CPU thread."""
    return Teacher(TeacherConfig.model_validate(SETTINGS | changes))


@dataclass(frozen=True)
class World:
    """Shards of unequal length with their index."""

    folder: Path
    index: Index

    @property
    def index_path(self) -> str:
        return str(self.index.path)


def make_world(folder: Path, *, samples: tuple[int, ...] = (40, 33, 21), seed: int = 0, **changes: object) -> World:
    """A few dozen images in three shards, in blocks of 16."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder / "shards", len(samples), list(samples), size=24, classes=CLASSES, seed=seed, **changes)
    index = build_index(str(folder / "shards"), folder / "index", block_size=16)
    return World(folder, index)


def make_cache(
    world: World,
    out: Path | str,
    *,
    views=(0, 1, 2, "center"),
    targets: TargetsConfig | None = None,
    config: ViewsConfig = VIEWS,
    **changes,
):
    """Cache views of a world with the tiny teacher; returns the open cache."""
    targets = targets or TargetsConfig(k=4)
    cache, _ = cache_views(
        str(out),
        world.index,
        config,
        teacher(**changes),
        targets,
        list(views),
        caching=CachingConfig(render_threads=2),
    )
    return cache


def recommit(cache: Cache, segment: Segment, shard: int, fields: dict[str, Any], quality: Quality) -> None:
    """Replace a finished task, with all records and checksums in order."""
    cache.store.remove(segment.commit(cache.shards[shard]["name"]))
    commit_task(cache, segment, shard, fields, quality)


def tree(folder: Path, ignore: tuple[str, ...] = ("provenance.json",)) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in ignore}
