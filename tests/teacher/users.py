"""A user's own network with the methods that timm's have, in milliseconds; and what may be wrong with one."""

import torch
from torch import nn

from tests.teacher.networks import CLASSES


class Pair(nn.Module):
    """Two layers; what the first says is taken so many times, and the second takes as much less of it."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.second = nn.Conv2d(3, 5, 4, stride=4), nn.Linear(5, CLASSES)


class Moving(Pair):
    """Merged, it has another factor."""

    def fuse(self) -> nn.Module:
        other = Pair(2.0)
        other.load_state_dict(self.state_dict())
        other.extra = nn.Parameter(torch.zeros(1))
        return other


class Users(nn.Module):
    """Maps of 5 channels and a side of a quarter of the images'; `kind` is what is wrong with it."""

    num_features, num_classes = 5, CLASSES

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.pair = kind, Moving() if kind == "moves" else Pair()
        if kind.startswith("silent"):
            self.num_features = None
        if kind.endswith("stated"):
            self.output_fmt = "NHWC" if "last" in kind else "NCHW"

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        final = self.pair.first(x) * self.pair.factor * {"nan": float("nan"), "large": 1e6}.get(self.kind, 1)
        if self.kind == "raises":
            raise RuntimeError("not today")
        if self.kind == "tokens":
            return final.flatten(2)[:, :, 1:].transpose(1, 2)
        if self.kind == "class token":
            return final.flatten(2)[:, :, :1].transpose(1, 2)
        if "last" in self.kind:
            return final.permute(0, 2, 3, 1)
        return (final, final) if self.kind == "several" else final

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if isinstance(x, tuple):
            x = x[0]
        if self.kind == "in place":
            x = x.relu_()
        if self.kind == "a view in place":
            pooled = x[:, :, 0, 0]
            return pooled if pre_logits else self.pair.second(pooled.clamp_(max=1e6))
        if "last" in self.kind:
            x = x.permute(0, 3, 1, 2)
        pooled = x.mean(1) if x.ndim == 3 else x.mean((2, 3))
        if pre_logits:
            return pooled[:, :, None] if self.kind == "pooled" else pooled
        logits = self.pair.second(pooled / self.pair.factor) * (1.01 if self.kind == "lies" else 1)
        return logits.clamp(-0.01, 0.01) if self.kind == "bent" else logits

    def get_classifier(self) -> nn.Module:
        return self.pair.second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "raises":
            return self.pair.second(self.pair.first(x).mean((2, 3)))
        said = self.forward_head(self.forward_features(x))
        return said / 1.01 if self.kind == "lies" else said


def users(kind: str = "right", num_classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """Always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Users(kind)


def other_every_time(kind: str, num_classes: int = CLASSES) -> nn.Module:
    """With random weights that nobody keeps."""
    return Users(kind)
