"""A plan says which layers of a network are computed in which way; whoever has it computes as its author did."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pipeline.errors import TeacherError
from pipeline.models import input_shapes
from pipeline.teacher.ways import WAYS, Way, ways_of

# Layer -> way; layers that it doesn't name are plain. The whole network may be compiled.
Plan = dict[str, str]
WHOLE, COMPILED = "", "compiled"

# Largest difference of two forms, relative to the largest logit, float32.
TOLERANCE = 1e-5
_OTHER = "Leave teacher.layers out, and the fastest ways are found here"


def apply(model: nn.Module, plan: Plan, x: torch.Tensor, name: str, *, channels_last: bool) -> None:
    """Have each layer computed as the plan says, and the others plainly; in place.

    Args:
        model: in any state that this function left it in.
        plan: what it says of WHOLE is the caller's to do.
        x: images, float (N, 3, S, S), on the model's device; one is enough.
        name: the model's.
        channels_last: the format in which it runs.

    Raises:
        TeacherError: the plan names a layer that isn't there, or a way that it can't be computed in.
    """
    for at, module in list(model.named_modules()):
        if isinstance(module, Way):
            _put(model, at, module.plain)
    shapes = input_shapes(model, x) if any(at != WHOLE for at in plan) else {}
    for at, way in plan.items():
        if at == WHOLE:
            continue
        known = ways_of(model.get_submodule(at), shapes[at], channels_last) if at in shapes else ()
        if way not in known:
            what = "this layer has no such way to be computed" if at in shapes else "the network has no such layer"
            allowed = ", ".join(("plain", *known)) if at in shapes else None
            raise TeacherError(what, where=f"{name}: teacher.layers: {at}", found=way, allowed=allowed, do=_OTHER)
        _put(model, at, WAYS[way](model.get_submodule(at), shapes[at]))


def compiled(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network compiled for one shape of input, its weights as constants; each layer keeps its memory format."""
    return torch.compile(model, dynamic=False, options={"freezing": True, "layout_optimization": False})


def on_cpu(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits in float32 on the CPU, where float32 is float32, of a network on any device."""
    # Its tensors on the CPU; those that are there already aren't copied.
    here: dict[str, Any] = {key: value.cpu() for key, value in [*model.named_parameters(), *model.named_buffers()]}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return functional_call(model, here, (x.cpu().float(),))


def noise(images: int, size: int) -> torch.Tensor:
    """Images to compare forms on, (N, 3, size, size), always the same."""
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def require_same(
    found: torch.Tensor, expected: torch.Tensor, name: str, what: str, do: str, tolerance: float = TOLERANCE
) -> None:
    """Refuse logits that differ from others by more than `tolerance`, relative to the largest.

    What isn't finite in the expected ones is refused by whoever keeps it.

    Raises:
        TeacherError: they differ.
    """
    finite = expected.isfinite()
    gap = (found - expected)[finite].abs()
    most = expected[finite].abs().max() if finite.any() else torch.tensor(0.0)
    if not bool((gap <= tolerance * most).all()):
        raise TeacherError(
            what, where=name, found=f"{float(gap.max() / most):.2g} of the largest logit", allowed=tolerance, do=do
        )


def _put(model: nn.Module, at: str, module: nn.Module) -> None:
    parent, _, last = at.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
