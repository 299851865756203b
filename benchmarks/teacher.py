"""A teacher's forward in the fastest form found here, against its plain one and against maps forced to NCHW."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import spread
from kdpipe.models import inputs_seen
from kdpipe.teacher import resolve_device
from kdpipe.teacher.reparameterisation import merge
from kdpipe.teacher.runner import Runner
from kdpipe.teacher.tune.search import PLAIN, kinds, timed, ways_to_run

# A matrix product large enough for a device to show what it can, and a copy that no cache holds.
_MATRIX, _COPY = 4096, 2**28


def teacher(
    model: str = "slak_tiny",
    size: int = 224,
    batch: int = 8,
    amp_dtype: str = "float32",
    device: str = "auto",
    seconds: float = 180.0,
    repeats: int = 7,
) -> dict[str, Any]:
    """Images a second of a network with random weights, in four forms, run in turn.

    Plain is the network as it was trained, in eval mode, run eagerly on maps as timm's blocks leave them; forced NCHW
    is the same with every convolution's input made contiguous; merged has branches merged, BatchNorms folded and
    kernels cropped; ours has besides what the search found. The search's loss is what its choices of ways take beyond
    the fastest of all, every one measured as often as here.

    Args:
        model: timm name.
        size: side of the images.
        batch: images a forward.
        amp_dtype: autocast's; float32 for none.
        device: where.
        seconds: for the search.
        repeats: rounds.
    """
    where, dtype = resolve_device(device), getattr(torch, amp_dtype)
    torch.manual_seed(0)
    plain = timm.create_model(model).eval().requires_grad_(False)
    merged = merge(plain, model, size) or deepcopy(plain)
    flops = _flops(merged, size)
    forms: dict[str, nn.Module] = {
        "plain": plain.to(where),
        "nchw": _forced(deepcopy(plain)).to(where),
        "merged": deepcopy(merged).to(where, memory_format=torch.channels_last),  # type: ignore[call-overload]
        "ours": merged.to(where, memory_format=torch.channels_last),  # type: ignore[call-overload]
    }
    runners = {
        name: Runner(
            module,
            model,
            batch=batch,
            size=size,
            device=where,
            amp_dtype=dtype,
            channels_last=name in ("merged", "ours"),
        )
        for name, module in forms.items()
    }
    began = time.perf_counter()
    runners["ours"].search(seconds)
    searched = time.perf_counter() - began
    x = torch.randn(batch, 3, size, size, device=where)
    inputs = {
        name: x if name in ("plain", "nchw") else x.contiguous(memory_format=torch.channels_last) for name in forms
    }
    times = _rounds({name: partial(run, inputs[name]) for name, run in runners.items()}, where, repeats)
    matmul, copied = _matmul_rate(where, dtype), _copy_rate(where)
    best = min(times["ours"])
    return {
        "images_per_second": spread([batch / t for t in times["ours"]]),
        "reference": "the network as trained, run eagerly in timm's block order",
        "reference_images_per_second": spread([batch / t for t in times["plain"]]),
        "ratio": spread([p / o for p, o in zip(times["plain"], times["ours"], strict=True)]),
        "nchw_images_per_second": spread([batch / t for t in times["nchw"]]),
        "ratio_nchw": spread([p / o for p, o in zip(times["nchw"], times["ours"], strict=True)]),
        "merged_images_per_second": spread([batch / t for t in times["merged"]]),
        "ratio_merged": spread([p / o for p, o in zip(times["merged"], times["ours"], strict=True)]),
        "ways": dict(Counter(runners["ours"].plan.values())),
        "search_seconds": searched,
        "search_loss": _loss(forms["merged"], runners["ours"].plan, inputs["merged"], dtype, repeats),
        "gflop_per_image": flops / 1e9,
        "matmul_gflop_per_second": matmul / 1e9,
        "share_of_matmul": batch * flops / best / matmul,
        "copy_gb_per_second": copied / 1e9,
        "share_of_copy": batch * _traffic(forms["merged"], x[:1], dtype) / best / copied,
        "model": model,
        "size": size,
        "batch": batch,
        "amp_dtype": amp_dtype,
        "device": where.type if where.type == "cpu" else torch.cuda.get_device_name(where),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
    }


def _rounds(runs: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(repeats + 1):
            for name, run in runs.items():
                seconds = timed(run, device)
                if number:  # the first round allocates
                    times[name].append(seconds)
    return times


def _loss(model: nn.Module, plan: dict[str, str], x: torch.Tensor, dtype: torch.dtype, repeats: int) -> float:
    """Seconds of the chosen ways beyond those of the fastest, as a share, over all layers that have several."""
    chosen = best = 0.0
    with torch.inference_mode(), torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for kind in kinds(model, x, channels_last=True):
            times = _rounds(ways_to_run(kind, x, channels_last=True), x.device, repeats)
            least = {way: min(t) for way, t in times.items()}
            chosen += len(kind.names) * least[plan.get(kind.names[0], PLAIN)]
            best += len(kind.names) * min(least.values())
    return chosen / best - 1 if best else 0.0


def _forced(model: nn.Module) -> nn.Module:
    """Every convolution sees a contiguous map."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    return model


def _flops(model: nn.Module, size: int) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())


def _traffic(model: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> float:
    """Bytes that the layers with weights read of an image's maps, and write as many: the least without fusion."""
    seen = inputs_seen(model, x).items()
    layers = [one.shape for name, one in seen if isinstance(model.get_submodule(name), nn.Conv2d | nn.Linear)]
    return 2.0 * dtype.itemsize * sum(torch.Size(shape).numel() for shape in layers)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of one large product."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(2))
    return 2.0 * _MATRIX**3 / min(timed(partial(torch.mm, a, b), device) for _ in range(4))


def _copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    a, b = (torch.zeros(_COPY, dtype=torch.uint8, device=device) for _ in range(2))
    return 2.0 * _COPY / min(timed(partial(a.copy_, b), device) for _ in range(4))
