"""Weights into a model, all of them or none; and where they don't fit, whose they are."""

import re
from pathlib import Path

import timm
import torch
from torch import nn

from kdpipe._util.tensors import remark
from kdpipe.errors import TeacherError
from kdpipe.models.class_map import classifier_keys, take_classes
from kdpipe.models.converters import from_published
from kdpipe.models.prefixes import aligned
from kdpipe.models.shapes import on_meta

Shapes = dict[str, tuple[int, ...]]
# What only one of our families has; the third is without.
_SIGNS = ((".mlp.grn.", "unireplknet"), (".pw1.", "replknet"))
# Models of a family that are looked at when weights don't fit: each costs a tenth of a second.
_MOST = 40


def fit(model: nn.Module, state: dict[str, torch.Tensor], where: str | Path, rows: list[int] | None = None) -> None:
    """Load `state` into `model`, strictly: arguments and errors as `fitted` has them."""
    model.load_state_dict(fitted(model, state, where, rows))


def fitted(
    model: nn.Module, state: dict[str, torch.Tensor], where: str | Path, rows: list[int] | None = None
) -> dict[str, torch.Tensor]:
    """`state` under the names of `model`, all of which it has, in their shapes.

    Args:
        model: stays as it is; one on the meta device will do.
        state: under the model's names, with or without a prefix, or in a published layout of a large-kernel network
            or ConvNeXt.
        where: the file, for messages.
        rows: a class map; see `take_classes`.

    Raises:
        TeacherError: names what is missing, too much or of another shape, and the model that it looks like.
    """
    own = _shapes(model.state_dict())
    if state.keys() != own.keys():
        state, remarks = aligned(own, from_published(state), classifier_keys(model), where)
        for text in remarks:
            remark(where, text)
    if rows is not None:
        state = dict(state)
        take_classes(state, model, rows, where)
    got = _shapes(state)
    problems = {
        "missing": sorted(own.keys() - got.keys()),
        "unexpected": sorted(got.keys() - own.keys()),
        "of another shape": [
            f"{key} {got[key]} instead of {own[key]}" for key in sorted(own.keys() & got.keys()) if got[key] != own[key]
        ],
    }
    if not any(problems.values()):
        return state
    differences = ", ".join(
        f"{len(keys)} {kind} (first: {keys[0]})" + (f" (next: {', '.join(keys[1:3])})" if keys[1:] else "")
        for kind, keys in problems.items()
        if keys
    )
    raise TeacherError(
        f"weights don't fit the model {type(model).__name__}: {differences}",
        where=where,
        do=_advice(model, own, got),
    )


def classes_of(model: nn.Module, state: dict[str, torch.Tensor], where: str | Path) -> int | None:
    """Rows of the classifier in weights that fit `model` but for it; None where they have none."""
    state, _ = aligned(_shapes(model.state_dict()), from_published(state), classifier_keys(model), where)
    return next((len(state[key]) for key in classifier_keys(model) if key in state and state[key].ndim), None)


def _advice(model: nn.Module, own: Shapes, got: Shapes) -> str:
    head = set(classifier_keys(model))
    if own.keys() == got.keys() and all(got[key] == own[key] or key in head for key in own):
        classes = next(got[key][0] for key in head if key in got)
        return f"They are of {classes} classes: pass that number, or a class map that selects yours"
    like = _looks_like(model, own, got)
    return like or "Check the model's name, --model-kwargs, --checkpoint-key, --key-prefix and the number of classes"


def _looks_like(model: nn.Module, own: Shapes, got: Shapes) -> str | None:
    """The registered model with the most tensors of these names and shapes, the classifier apart."""
    best, most = "", 0.0
    for name in _candidates(model, own, got):
        try:
            other = on_meta(name)
        except Exception:  # a model that can't be built so is no candidate
            continue
        head = set(classifier_keys(other))
        shapes = {k: v for k, v in _shapes(other.state_dict()).items() if k not in head}
        rest = {k: v for k, v in got.items() if k not in head}
        share = sum(rest.get(key) == shape for key, shape in shapes.items()) / max(len(shapes), len(rest), 1)
        if share > most:
            best, most = name, share
            classes = next((got[key][0] for key in sorted(head) if key in got), None)
            if share == 1:
                of = f" with {classes} classes" if classes else " without a classifier"
                return f"They are those of {name}{of}"
    return f"They are most like {best}: {most:.0%} of its tensors fit" if most >= 0.5 else None


def _candidates(model: nn.Module, own: Shapes, got: Shapes) -> list[str]:
    """Of our families the one that such names are of, ConvNeXt, and those named as the requested model is."""
    if any(".conv_dw.branches." in key for key in got):
        family = next((family for sign, family in _SIGNS if any(sign in key for key in got)), "slak")
        names = timm.list_models(module=family)
    else:
        names = ["convnext_tiny", "convnext_small"] if any(key.endswith(".conv_dw.weight") for key in got) else []
    requested = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    # Members of a family share most of their names.
    if requested and timm.is_model(requested) and 4 * len(own.keys() & got.keys()) >= len(got):
        stem = re.match(r"[a-z]*", requested)
        names += [name for name in timm.list_models(f"{stem[0] if stem else requested}*")[:_MOST] if name not in names]
    return names


def _shapes(state: dict[str, torch.Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
