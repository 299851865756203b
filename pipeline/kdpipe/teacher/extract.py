"""What of a network is kept beside a cache, taken out of it and tried: the last stage and the classifier."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NoReturn, cast

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import ModelSpec, first_line
from kdpipe.teacher.modules import TOLERANCE, Tail, gap, part_outputs, shape_of
from kdpipe.teacher.outputs import channels_last

_NO_TAIL = "Leave out targets.tail: cap-dfm does without one. Networks of ConvNeXt's, Swin's and ResNet's kind have one"
_NO_HEAD = "Cache the logits themselves: --targets dense"
# Other devices than the CPU round float32 to fewer bits.
_ROUNDING = 1e-2
_BATCH = 16


def tail_parts(
    plain: nn.Module, built: ModelSpec, images: torch.Tensor, teacher: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The last stage and the norm behind it, with probes: `load_tail` makes a Tail of them.

    Of several layers behind the stage the norm is the one which makes `forward_features` of the stage's map.

    Args:
        plain: the network in eval mode as it was built, not merged, on any device.
        built: its name and what builds it again.
        images: the probes, float32 (n, 3, S, S), normalised; 64 of them where it is for a cache.
        teacher: digest of its weights.

    Returns:
        Tensors `tail.stage.*`, `tail.norm.*`, probe_inputs (n, C3, h3, w3), probe_outputs (n, D, h, w), on the
        CPU; and the record of how to build it.

    Raises:
        TeacherError: the network has no such stage, or its final map isn't made by stage and norm alone.
    """
    stage_name = _last_stage(plain)
    if stage_name is None:
        _refuse(built, "the model has no last stage that can be taken out", type(plain).__name__, _NO_TAIL)
    stage = plain.get_submodule(stage_name)
    maps, finals = _run(plain, stage, stage_name, built, images)
    last = channels_last(plain, finals, built.name)
    inputs, finals = (x.permute(0, 3, 1, 2) if last else x for x in (maps, finals))
    shapes = shape_of(inputs), shape_of(finals)
    here = deepcopy(stage).cpu()
    tried: list[tuple[float, str | None, nn.Module | None, torch.Tensor]] = []
    for name, norm in _norms(plain, stage_name):
        try:
            tail = Tail(here, None if norm is None else deepcopy(norm).cpu(), *shapes, last)
            outputs = part_outputs(tail, inputs)
        except Exception:  # a layer that takes something else than the final map
            continue
        tried.append((gap(outputs, finals), name, norm, outputs))
    # The first of the nearest: a norm that does nothing is none.
    tried = sorted(tried, key=lambda one: one[0])
    if not tried or tried[0][0] > _near(images):
        _refuse(built, "the final map isn't the last stage's, nor a norm of it", stage_name, _NO_TAIL)
    _, norm_name, norm, outputs = tried[0]
    state = {f"tail.stage.{k}": v for k, v in stage.state_dict().items()}
    state |= {f"tail.norm.{k}": v for k, v in norm.state_dict().items()} if norm is not None else {}
    tensors = state | {"probe_inputs": inputs, "probe_outputs": outputs}
    about = {
        "teacher": teacher,
        "model": built.name,
        "model_kwargs": built.kwargs,
        "num_classes": built.num_classes,
        "input_size": built.input_size,
        "stage": stage_name,
        "norm": norm_name,
        "channels_last": last,
    }
    # Each its own memory: safetensors refuses tensors that share it.
    return {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, about


def head_parts(plain: nn.Module, built: ModelSpec, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The classifier, with probes: `load_head` makes a Linear of them.

    Args:
        plain, built, images: as `tail_parts`.

    Returns:
        weight (C, D), bias (C,), probe_inputs (n, D), what the classifier sees, and probe_outputs (n, C): float32
        on the CPU.

    Raises:
        TeacherError: logits aren't a linear function of what the classifier sees.
    """
    try:
        head = cast(Any, plain).get_classifier()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            maps = [cast(Any, plain).forward_features(x) for x in images.split(_BATCH)]
            pooled = torch.cat([cast(Any, plain).forward_head(x, pre_logits=True) for x in maps]).cpu()
            logits = torch.cat([cast(Any, plain).forward_head(x) for x in maps]).cpu()
    except Exception as e:  # a network that isn't of timm's kind
        _refuse(built, f"no classifier can be taken out: {first_line(e)}", type(plain).__name__, _NO_HEAD)
    if not isinstance(head, nn.Linear):
        _refuse(built, "the classifier isn't linear", type(head).__name__, _NO_HEAD)
    weight = head.weight.detach().cpu().float().clone()
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().cpu().float().clone()
    fits = pooled.ndim == 2 and pooled.shape[1] == weight.shape[1]
    outputs = nn.functional.linear(pooled, weight, bias) if fits else None
    if outputs is None or gap(outputs, logits) > _near(images):
        _refuse(built, "logits aren't a linear function of what the classifier sees", type(head).__name__, _NO_HEAD)
    return {"weight": weight, "bias": bias, "probe_inputs": pooled.contiguous(), "probe_outputs": outputs}


def _last_stage(plain: nn.Module) -> str | None:
    """Its name: as the network declares it, or else as most are called."""
    infos = getattr(plain, "feature_info", None)
    if isinstance(infos, list) and infos and isinstance(infos[-1], dict):
        named = str(infos[-1].get("module", ""))
        # A layer without a kernel is a norm: the stage is before it.
        found = dict(plain.named_modules()).get(named) if named else None
        if found is not None and any(p.ndim > 1 for p in found.parameters()):
            return named
    for name in ("stages", "layers"):
        children = list(getattr(plain, name, nn.Module()).children())
        if children:
            return f"{name}.{len(children) - 1}"
    return "layer4" if isinstance(getattr(plain, "layer4", None), nn.Module) else None


def _run(
    plain: nn.Module, stage: nn.Module, name: str, built: ModelSpec, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the stage is given, and the final map, both on the CPU, in the network's own layout."""
    given: list[Any] = []
    handle = stage.register_forward_pre_hook(lambda _, args: given.append(args[0] if len(args) == 1 else None))
    try:
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            finals = [cast(Any, plain).forward_features(x) for x in images.split(_BATCH)]
    except Exception as e:  # a network that isn't of timm's kind, or can't run
        what = f"the model's final map can't be had: {type(e).__name__}: {first_line(e)}"
        _refuse(built, what, name, _NO_TAIL)
    finally:
        handle.remove()
    maps = (*given, *finals)
    if len(given) != len(finals) or not all(isinstance(x, torch.Tensor) and x.ndim == 4 for x in maps):
        _refuse(built, "the last stage doesn't take one map and give one", name, _NO_TAIL)
    return torch.cat(given).cpu(), torch.cat(finals).cpu()


def _norms(plain: nn.Module, stage: str) -> Iterator[tuple[str | None, nn.Module | None]]:
    """None, then each layer behind the stage."""
    yield None, None
    children = dict(plain.named_children())
    behind = list(children).index(stage.partition(".")[0]) + 1
    yield from list(children.items())[behind:]


def _near(images: torch.Tensor) -> float:
    return TOLERANCE if images.device.type == "cpu" else _ROUNDING


def _refuse(built: ModelSpec, what: str, found: str, do: str) -> NoReturn:
    raise TeacherError(what, where=built.name, found=found, do=do)
