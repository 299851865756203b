"""Teachers whose output is not a function of their input, and how a cache of one comes to be all the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.targets import Quality, TargetsConfig
from tests.tiny import CLASSES, World, make_cache, network, recommit

KINDS = ("dropout", "batch norm", "noise", "batch mean")


class Stochastic(nn.Module):
    """The tiny network with one thing wrong between its features and its classifier."""

    def __init__(self, kind: str, num_classes: int) -> None:
        super().__init__()
        self.kind = kind
        self.features, self.classifier = network(num_classes)[:-1], network(num_classes)[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if self.kind == "dropout":
            x = F.dropout(x)
        elif self.kind == "batch norm":
            x = F.batch_norm(x, None, None, training=True)
        elif self.kind == "noise":
            x = x + 0.1 * torch.randn_like(x)
        elif self.kind == "batch mean":
            x = x - x.mean(0, keepdim=True)
        return self.classifier(x)


class Fusing(nn.Conv2d):
    """Merged it is the same, with a bias of zero."""

    def fuse(self) -> nn.Module:
        other = nn.Conv2d(3, 8, 3)
        other.load_state_dict({"weight": self.weight, "bias": torch.zeros(8)})
        return other


class Headed(nn.Module):
    """A convolution whose mean the classifier sees after dropout, with timm's methods."""

    def __init__(self, kind: str, num_classes: int) -> None:
        super().__init__()
        self.conv = Fusing(3, 8, 3, bias=False) if "merged" in kind else nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.conv(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def stochastic(kind: str, num_classes: int = CLASSES) -> nn.Module:
    """One of KINDS, the same network without any of it, or a network with forms to compare."""
    if kind not in ("dropout, merged", "dropout, features"):
        return Stochastic(kind, num_classes)
    torch.manual_seed(0)
    return Headed(kind, num_classes)


def settings(kind: str) -> dict[str, object]:
    """What `tests.tiny.teacher` takes."""
    return {"model": "tests.caching.stochastic:stochastic", "model_kwargs": {"kind": kind}}


def old_cache(world: World, out: Path, kind: str, targets: TargetsConfig, **changes: object) -> Cache:
    """A cache as made before anything was tried first."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr("kdpipe.caching.backend.try_batch", lambda *_, **__: None)
        return make_cache(world, out, views=(0, "center"), targets=targets, **settings(kind), **changes)


def change(cache: Cache, what) -> Cache:
    """The cache opened again after `what` was done to the rows of every task, a dict of arrays by field."""
    reader = ArrayReader(cache)
    for segment in cache.segments:
        for position, shard in enumerate(cache.shards):
            views = [reader.read(segment, shard["name"], view, 0, shard["samples"]) for view in segment.views]
            rows = {name: np.stack([view[name] for view in views]) for name in views[0]}
            what(rows)
            quality = Quality(**cache.commits[segment.name, shard["name"]]["quality"])
            recommit(cache, segment, position, rows, quality)
    return Cache(Store(cache.store.url))


def roll(rows: dict[str, np.ndarray]) -> None:
    """Each class's value becomes that of the class three further on."""
    if "logits" in rows:
        rows["logits"] = np.roll(rows["logits"], 3, axis=-1)
    else:
        rows["index"] = ((rows["index"] + 3) % CLASSES).astype(rows["index"].dtype)
