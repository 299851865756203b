"""One small network of each family: how our model is made, its published state dict, and that computed by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

import kdpipe.models.build  # noqa: F401  (registers the networks)
from tests.models import layouts, reference
from tests.models.layouts import State

DIMS, DEPTHS, CLASSES, SIDE = (8, 12, 16, 20), (1, 2, 3, 1), 7, 64
UNI = ((3,), (13, 13), (13, 3, 3), (13,))


class Small(NamedTuple):
    """`kwargs` build `model` so small; `state` is its weights as published; `forward` computes with them."""

    model: str
    kwargs: dict[str, Any]
    state: Callable[..., State]
    forward: Callable[[State, torch.Tensor], torch.Tensor]

    def make(self, **changes: object) -> nn.Module:
        return timm.create_model(self.model, **{"num_classes": CLASSES, **self.kwargs, **changes})


FAMILIES = {
    "slak": Small(
        "slak_tiny",
        {"dims": DIMS, "depths": DEPTHS},
        lambda **c: layouts.slak(DIMS, DEPTHS, **{"classes": CLASSES, **c}),
        reference.slak,
    ),
    "replknet": Small(
        "replknet_31b",
        {"dims": DIMS, "depths": DEPTHS, "kernel_sizes": (31, 15, 9, 5)},
        lambda **c: layouts.replknet(DIMS, DEPTHS, (31, 15, 9, 5), **{"classes": CLASSES, **c}),
        reference.replknet,
    ),
    "unireplknet": Small(
        "unireplknet_s",
        {"dims": DIMS, "depths": DEPTHS},
        lambda **c: layouts.unireplknet(DIMS, UNI, **{"classes": CLASSES, **c}),
        reference.unireplknet,
    ),
}


def images(n: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(9))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, relative to the largest value of `b`."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def shuffled(model: nn.Module, seed: int = 3) -> nn.Module:
    """Random weights and BatchNorm statistics, in eval mode: freshly made ones would hide what folding gets wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith("running_var") or (tensor.ndim == 1 and key.endswith("weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.ndim == 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif tensor.is_floating_point():
                fan = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan**-0.5)
    return model.eval()
