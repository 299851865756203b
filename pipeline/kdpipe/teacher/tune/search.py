"""The fastest way to compute each layer of a network on this device, found by timing them: briefly, and once a run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kdpipe.models import Shape, inputs_seen
from kdpipe.teacher.config import KernelPlan
from kdpipe.teacher.tune.kernels import WAYS
from kdpipe.teacher.tune.plan import other_ways

# Another way must be faster by this much, or a layer stays as it is: timings are no better than that.
_GAIN = 0.03
# Times that each way is measured, in turn with the others; one that was this much slower at first isn't again.
_REPEATS, _HOPELESS = 9, 1.5
PLAIN = "plain"


@dataclass(frozen=True)
class Kind:
    """Layers that cost the same: their names, one of them, its input, and the ways beside the plain one."""

    names: list[str]
    module: nn.Module
    shape: Shape
    dtype: torch.dtype
    ways: tuple[str, ...]


def kinds(model: nn.Module, x: torch.Tensor, channels_last: bool) -> list[Kind]:
    """The layers of a plain network that could be computed in another way, those that work most first."""
    found: dict[Any, Kind] = {}
    seen = inputs_seen(model, x)
    for name, (shape, dtype, _) in seen.items():
        ways = other_ways(model, name, seen, channels_last)
        if not ways:
            continue
        module = model.get_submodule(name)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        key = type(module), tuple(weight.shape), shape, dtype
        found.setdefault(key, Kind([], module, shape, dtype, ways)).names.append(name)
    return sorted(found.values(), key=lambda k: -_work(k) * len(k.names))


def search(model: nn.Module, x: torch.Tensor, seconds: float, *, channels_last: bool) -> KernelPlan:
    """The way of each layer that is faster in another than the plain one.

    Args:
        model: on its device, each layer plain.
        x: a batch as the network will get it; with autocast as it will be, if any.
        seconds: to spend at most, and one measurement; layers that weren't reached stay plain.
        channels_last: the format in which the network runs.
    """
    until, plan = time.monotonic() + seconds, {}
    for kind in kinds(model, x, channels_last):
        if time.monotonic() >= until:
            break
        best = fastest(kind, x, until, channels_last=channels_last)
        if best is not None:
            plan.update(dict.fromkeys(kind.names, best))
    return dict(sorted(plan.items()))


def fastest(kind: Kind, like: torch.Tensor, until: float, *, channels_last: bool) -> str | None:
    """The fastest way of a layer; None for the plain one."""
    runs = ways_to_run(kind, like, channels_last=channels_last)
    times = interleaved(runs, like.device, until)
    best = min(times, key=times.__getitem__)
    return None if best == PLAIN or times[best] > times[PLAIN] * (1 - _GAIN) else best


def ways_to_run(kind: Kind, like: torch.Tensor, *, channels_last: bool) -> dict[str, Callable[[], object]]:
    """Each way of a layer by name, the plain one first, as a function that computes it on an input of its own."""
    x = torch.randn(kind.shape, device=like.device).to(kind.dtype)
    if channels_last and isinstance(kind.module, nn.Conv2d):
        x = x.contiguous(memory_format=torch.channels_last)
    ways = {way: WAYS[way](kind.module, kind.shape) for way in kind.ways}
    return {name: partial(module, x) for name, module in {PLAIN: kind.module, **ways}.items()}


def interleaved(
    runs: Mapping[str, Callable[[], object]], device: torch.device, until: float = float("inf"), repeats: int = _REPEATS
) -> dict[str, float]:
    """Seconds of each function, the least of several measurements in turn, after one that doesn't count.

    A function that can't run, for lack of memory or of a kernel, isn't in the result, but for the first.
    """
    times: dict[str, list[float]] = {}
    for at, (name, run) in enumerate(runs.items()):
        try:
            timed(run, device)
            times[name] = [timed(run, device)]
        except Exception:
            if at == 0:
                raise
    least = min(min(t) for t in times.values())
    candidates = [name for name, t in times.items() if t[0] <= _HOPELESS * least]
    for _ in range(repeats - 1):
        if len(candidates) < 2 or time.monotonic() >= until:
            break
        for name in candidates:
            times[name].append(timed(runs[name], device))
    return {name: min(t) for name, t in times.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has run what a function submits to it."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


def _work(kind: Kind) -> float:
    """Multiplications of one layer."""
    weight = kind.module.weight
    assert isinstance(weight, torch.Tensor)
    places = torch.Size(kind.shape).numel() // (kind.shape[1] if isinstance(kind.module, nn.Conv2d) else kind.shape[-1])
    return float(weight.numel() * places)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
