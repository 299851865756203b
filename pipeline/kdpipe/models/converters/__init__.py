"""Checkpoints as the papers' own repositories publish them, with their names for things -> our models' names."""

from typing import Any

import torch

from kdpipe.models.converters import convnext, replknet, slak, unireplknet
from kdpipe.models.converters.layout import Layout

# By what only they hold: of two that share keys the narrower comes first.
LAYOUTS: tuple[Layout, ...] = (unireplknet.LAYOUT, slak.LAYOUT, replknet.LAYOUT, convnext.LAYOUT)

__all__ = ["LAYOUTS", "Layout", "from_published", "implied_kwargs", "recognise"]


def recognise(state: dict[str, torch.Tensor]) -> Layout | None:
    """Whose layout a state dict has, by its keys; None for any other, ours included."""
    return next((layout for layout in LAYOUTS if layout.recognises(state)), None)


def from_published(state: dict[str, Any], model: Any = None) -> dict[str, torch.Tensor]:
    """A state dict under our names; as it is where no published layout is recognised.

    It has the signature of timm's `pretrained_filter_fn`, which is given the whole file: the weights may lie
    under "model".
    """
    del model
    state = state.get("model", state)
    layout = recognise(state)
    return layout.rename(state) if layout else state


def implied_kwargs(name: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of the model `name` without which these weights can't fit, from their keys and shapes.

    Empty for the usual form, and for a model of another family: that they don't fit is reported later.
    """
    layout = recognise(state)
    return layout.implies(state) if layout and name.startswith(f"{layout.name}_") else {}
