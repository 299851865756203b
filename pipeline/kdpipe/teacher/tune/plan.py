"""A kernel plan: which kernel computes each layer of a network; the same plan gives the same computation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from kdpipe.errors import TeacherError
from kdpipe.models import Seen, inputs_seen
from kdpipe.teacher.config import KernelPlan
from kdpipe.teacher.outputs import TeacherOutput, WithFeatures
from kdpipe.teacher.tune.kernels import WAYS, Kernel, ways_of

WHOLE, COMPILED = "", "compiled"

# Largest difference of two forms, relative to the largest value, float32.
TOLERANCE = 1e-5
# What the parts of an output are called, and how many times more they may differ: a map's values are sums of
# thousands too, but nothing has averaged them yet.
_CALLED = {"logits": "logit", "pooled": "pooled feature", "map": "value of the final map"}
_ROOM = {"logits": 1.0, "pooled": 10.0, "map": 10.0}
NOT_A_FUNCTION = "the teacher is not a function of its input"
CAUSES = "dropout left on, batch norm in train mode, added noise, or normalisation over the batch"
# About a plan that was passed, or that a cache was started with.
OTHER = "Leave out teacher.layers; where a cache was started with it, resume where it can be run, or start another"


def apply(model: nn.Module, plan: KernelPlan, x: torch.Tensor, name: str, *, channels_last: bool) -> None:
    """Have each layer of a plain network computed by the plan's kernels; in place.

    Args:
        model: in which every layer is plain.
        plan: its entry for WHOLE is left to the caller.
        x: images, float (N, 3, S, S), on the model's device; one is enough.
        name: the model's.
        channels_last: the format in which it runs.

    Raises:
        TeacherError: the plan names a layer that isn't there, or a way that it can't be computed in.
    """
    layers = {at: way for at, way in plan.items() if at != WHOLE}
    seen = inputs_seen(model, x) if layers else {}
    for at, way in layers.items():
        known = other_ways(model, at, seen, channels_last)
        if way not in known:
            what = "this layer has no such way to be computed" if at in seen else "the network runs no such layer"
            allowed = ", ".join(("plain", *known)) if at in seen else None
            raise TeacherError(what, where=f"{name}: teacher.layers: {at}", found=way, allowed=allowed, do=OTHER)
    for at, way in layers.items():
        _put(model, at, WAYS[way](model.get_submodule(at), seen[at].shape))


def other_ways(model: nn.Module, at: str, seen: Mapping[str, Seen], channels_last: bool) -> tuple[str, ...]:
    """Ways beside the plain one of the layer of this name; none for one that is run on maps of several kinds."""
    if not at or at not in seen or seen[at].varied:
        return ()
    layer = model.get_submodule(at)
    if getattr(getattr(layer, "weight", None), "dtype", None) != torch.float32:
        return ()
    return ways_of(layer, seen[at].shape, channels_last)


def restore(model: nn.Module) -> None:
    """Make every layer plain again, in place."""
    for at, module in list(model.named_modules()):
        if isinstance(module, Kernel):
            _put(model, at, module.original)


def compiled(model: WithFeatures) -> Callable[[torch.Tensor], TeacherOutput]:
    """The network compiled for one shape of input, its weights as constants; each layer keeps its memory format.

    With its features, if it gives any: they come out of the same graph.
    """
    return torch.compile(model, dynamic=False, options={"freezing": True, "layout_optimization": False})


def on_cpu(model: WithFeatures, x: torch.Tensor) -> TeacherOutput:
    """The output in float32 on the CPU, where float32 is float32, of a network on any device."""
    # Its tensors on the CPU; those that are there already aren't copied.
    here: dict[str, Any] = {key: value.cpu() for key, value in [*model.named_parameters(), *model.named_buffers()]}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        output: TeacherOutput = functional_call(model, here, (x.cpu().float(),))
    return output


def noise(images: int, size: int) -> torch.Tensor:
    """Images to compare forms on, (N, 3, size, size), always the same."""
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))


def require_same(
    found: TeacherOutput,
    expected: TeacherOutput,
    name: str,
    what: str,
    do: str,
    tolerance: float = TOLERANCE,
    again: Callable[[], TeacherOutput] | None = None,
) -> None:
    """Refuse an output whose logits differ from another's by more than `tolerance`, relative to the largest.

    Features may differ ten times as much. Only what both have is compared. What isn't finite in the expected one is
    refused where it is kept. Where they differ, `again` gives the expected one once more: a network whose
    outputs differ from run to run has no forms to compare.

    Raises:
        TeacherError: they differ.
    """
    difference = _difference(found, expected, tolerance)
    if difference is None:
        return
    twice = _difference(again(), expected, tolerance) if again is not None else None
    if twice is not None:
        do = f"Likely causes: {CAUSES}. Fix the model's eval mode; one that is stochastic on purpose can't be compared "
        do += "with another form or with its features: --set teacher.form=eager, and neither --pooled nor --feature-map"
        what, difference = f"{NOT_A_FUNCTION}: run twice on the same images, its outputs differ", twice
    raise TeacherError(what, where=name, found=difference[0], allowed=difference[1], do=do)


def _difference(found: TeacherOutput, expected: TeacherOutput, tolerance: float) -> tuple[str, str] | None:
    """The first part that differs by more than is allowed, and how much is; None if none does."""
    others = found.parts()
    for part, values in expected.parts().items():
        if part not in others:
            continue
        finite = values.isfinite()
        gap = (others[part] - values)[finite].abs()
        most = values[finite].abs().max() if finite.any() else torch.tensor(0.0)
        allowed = tolerance * _ROOM[part]
        if not bool((gap <= allowed * most).all()):
            far = f"{float(gap.max() / most):.2g} of the largest {_CALLED[part]}"
            return far, f"{allowed:.2g}"
    return None


def _put(model: nn.Module, at: str, module: nn.Module) -> None:
    parent, _, last = at.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
