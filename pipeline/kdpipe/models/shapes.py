"""A model's names and shapes without its memory, in a fraction of the time it takes to make it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What initialisers do to weights. On the meta device it changes nothing, and takes most of the time.
_WRITES = {
    *(torch.nn.init.kaiming_uniform_, torch.nn.init.kaiming_normal_, torch.nn.init.trunc_normal_),
    *(getattr(torch.Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_")),
}


class _SkipWrites(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WRITES:
            target = args[0] if args else kwargs["tensor"]
            # What a layer adds to in a forward pass has been computed, and is part of the graph of its gradients.
            if target.is_meta and target.is_leaf:
                return target
        return func(*args, **kwargs)


@contextmanager
def meta() -> Iterator[None]:
    """Networks that are built meanwhile, in this thread, get names and shapes and no memory."""
    with warnings.catch_warnings(), torch.device("meta"), _SkipWrites():
        warnings.simplefilter("ignore")
        yield


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """timm's `create_model` on the meta device, in eval mode; it raises what timm does."""
    with meta():
        return timm.create_model(name, **kwargs).eval()
