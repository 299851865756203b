"""Everything that a run carries from step to step, as named tensors and JSON; and back, bit for bit."""

import math
from typing import Any

import torch
from torch import nn

from kdpipe._util.fingerprint import differences
from kdpipe.errors import CheckpointError, TrainingError
from kdpipe.trainer.step import Step, parameter_names

Tensors = dict[str, torch.Tensor]


def pack(step: Step) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of model, adapters, average and optimizer by name, and what of them is JSON."""
    tensors = {f"model/{name}": t for name, t in step.model.state_dict().items()}
    tensors |= {f"loss/{name}": t for name, t in step.distillation.loss.state_dict().items()}
    if step.ema is not None:
        tensors |= {f"ema/{name}": t for name, t in step.ema.module.state_dict().items()}
    state = step.optimizer.state_dict()
    names = parameter_names(step.distillation, step.optimizer)
    by_name = {names[number]: value for number, value in state["state"].items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]]
    tree = {
        "state": _fold(by_name, "optimizer", tensors),
        "groups": _fold(groups, "group", tensors),
        "scaler": step.scaler.state_dict(),
    }
    return separate(tensors), tree


def unpack(step: Step, tensors: Tensors, tree: dict[str, Any], where: object) -> None:
    """Put what `pack` gave into a step made of the same configs.

    Raises:
        CheckpointError: it isn't what `pack` gives of such a step; `where` is the file.
    """
    try:
        _unpack(step, tensors, tree)
    except Exception as e:  # PyTorch and the optimizers raise what they like
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(
            f"the checkpoint's tensors or optimizer state don't fit its own job: {type(e).__name__}: {reason}",
            where=where,
            do="Choose another --out, or delete the folder to start again",
        ) from e


def _unpack(step: Step, tensors: Tensors, tree: dict[str, Any]) -> None:
    _load(step.model, tensors, "model/")
    _load(step.distillation.loss, tensors, "loss/")
    if step.ema is not None:
        _load(step.ema.module, tensors, "ema/")
    names = parameter_names(step.distillation, step.optimizer)
    numbers = {name: number for number, name in enumerate(names)}
    by_name = _unfold(tree["state"], tensors)
    state = step.optimizer.state_dict()
    for group, kept in zip(state["param_groups"], _unfold(tree["groups"], tensors), strict=True):
        group.update(_of_kind(group, kept))
    state["state"] = {numbers[name]: value for name, value in by_name.items()}
    step.optimizer.load_state_dict(state)
    for parameter, values in step.optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim >= 4 and value.shape == parameter.shape:
                # In the parameter's memory layout, as it was: another one may take another, differently
                # rounding, path through the same arithmetic.
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    step.scaler.load_state_dict(tree["scaler"])


def separate(tensors: Tensors) -> Tensors:
    """Contiguous on the CPU, each with memory of its own: tied weights are written twice."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        if flat.untyped_storage().data_ptr() in seen or flat.untyped_storage().nbytes() != flat.nbytes:
            flat = flat.clone()
        seen.add(flat.untyped_storage().data_ptr())
        out[name] = flat
    return out


def _load(module: nn.Module, tensors: Tensors, prefix: str) -> None:
    module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


def _fold(value: Any, name: str, tensors: Tensors) -> Any:
    """A tree of dicts, lists, tensors and scalars -> JSON, its tensors moved to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _fold(v, f"{name}/{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_fold(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TrainingError(
        "this optimizer's state can't be kept in a checkpoint",
        where=name,
        found=type(value).__name__,
        do="Use another --set train.opt",
    )


def _unfold(value: Any, tensors: Tensors) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unfold(v, tensors) for key, v in content}
    if kind in ("list", "tuple"):
        items = [_unfold(v, tensors) for v in content]
        return tuple(items) if kind == "tuple" else items
    dtype = getattr(torch, content, None) if kind == "dtype" else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{kind} {content}")
    return dtype


def _of_kind(fresh: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """A group of the optimizer's settings, if each is of the type that a new optimizer has there."""
    for name, value in fresh.items():
        if name != "params" and _kind(kept[name]) != _kind(value):
            raise TypeError(f"{name} is {kept[name]}")
    return {name: value for name, value in kept.items() if name != "params"}


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), [_kind(v) for v in value]
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return math.isfinite(value) if number else type(value)


def require_same(where: object, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Refuse a checkpoint of another job.

    Raises:
        CheckpointError: naming the first field that differs, and others.
    """
    found = differences(now, then)
    if found:
        field, ours, theirs = found[0]
        more = f" (and {', '.join(f for f, _, _ in found[1:4])})" if len(found) > 1 else ""
        raise CheckpointError(
            f"the checkpoint was made with another {field}{more}",
            where=where,
            found=f"{str(ours)[:200]} now",
            allowed=f"{str(theirs)[:200]} as started",
            do="Repeat with the settings it was started with, or choose another --out",
        )
