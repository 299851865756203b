"""A network's answer: its logits, and the features behind them, from one forward."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from pipeline.errors import TeacherError
from pipeline.models import first_line

FEATURES = ("pooled", "map")
_NEEDED = ("forward_features", "forward_head")
WITHOUT = "Cache logits alone: leave out targets.pooled and targets.map"


class TeacherOutput(NamedTuple):
    """What a teacher says of N views: `logits`, float32 (N, num_classes), and features where they were asked for.

    `pooled`, float32 (N, D), is what the classifier sees; `map`, float32 (N, D, h, w), contiguous, the final map as
    `forward_features` gives it. Before a teacher returns it, a network under autocast may have said it in less.

    Of several networks it is the mean of their logits, or of their log-probabilities. The latter are logits too:
    their softmax is the geometric mean of the members' probabilities, made to sum to 1. They are not
    normalised themselves: where members disagree, their exponentials sum to less than 1.
    """

    logits: torch.Tensor
    pooled: torch.Tensor | None = None
    map: torch.Tensor | None = None

    def parts(self) -> dict[str, torch.Tensor]:
        """What is there, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}

    def flipped(self) -> "TeacherOutput":
        """Views from the last to the first."""
        return TeacherOutput(**{name: x.flip(0) for name, x in self.parts().items()})

    @classmethod
    def joined(cls, outputs: "list[TeacherOutput]") -> "TeacherOutput":
        """Answers on several batches as one."""
        named = [output.parts() for output in outputs]
        return cls(**{name: torch.cat([parts[name] for parts in named]) for name in named[0]})


class Answering(nn.Module):
    """A network of timm's kind that gives these features beside its logits; without any it is run as it is.

    Args:
        model: shared, not copied: what becomes of its layers becomes of these.
        features: of FEATURES.
    """

    def __init__(self, model: nn.Module, features: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, x: torch.Tensor) -> TeacherOutput:
        """Images (N, 3, S, S) -> the answer, in the network's dtype."""
        if not self.features:
            return TeacherOutput(self.model(x))
        model = cast(Any, self.model)
        final = model.forward_features(x)
        pooled = model.forward_head(final, pre_logits=True) if "pooled" in self.features else None
        # The network's own way from map to logits, be its classifier one layer or more.
        logits = model.forward_head(final)
        return TeacherOutput(logits, pooled, as_map(model, final) if "map" in self.features else None)


def answering(model: nn.Module, features: tuple[str, ...], name: str, x: torch.Tensor) -> Answering:
    """The network with these features, tried on images.

    Args:
        model: in eval mode.
        features: of FEATURES.
        name: the model's.
        x: float32 (N, 3, S, S), where the model is.

    Raises:
        TeacherError: it has no such features.
    """
    missing = [method for method in _NEEDED if not hasattr(model, method)]
    if features and missing:
        do = f"Give it {' and '.join(_NEEDED)} as timm's models have them, or {WITHOUT[0].lower()}{WITHOUT[1:]}"
        raise TeacherError(f"the model has no {missing[0]}, so its features can't be had", where=name, do=do)
    made = Answering(model, features)
    if features:
        try:
            with torch.inference_mode():
                said = made(x)
        except TeacherError as e:
            raise TeacherError(e.what, where=name, found=e.found, allowed=e.allowed, do=WITHOUT) from e
        except Exception as e:  # a network that isn't of timm's kind after all
            what = f"the model can't give its features: {type(e).__name__}: {first_line(e)}"
            raise TeacherError(what, where=name, do=WITHOUT) from e
        if said.pooled is not None and said.pooled.ndim != 2:
            raise TeacherError(
                "what its classifier sees is no vector", where=name, found=tuple(said.pooled.shape[1:]), do=WITHOUT
            )
    return made


def as_map(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `forward_features` gives -> (N, D, h, w), contiguous.

    Maps may have their channels first or last; tokens lose those that belong to no place, and make a square.

    Raises:
        TeacherError: it is neither.
    """
    width = getattr(model, "num_features", None)
    if isinstance(x, torch.Tensor) and x.ndim == 4:
        last = str(getattr(model, "output_fmt", "")).upper().endswith("NHWC") or (
            x.shape[3] == width and x.shape[1] != width
        )
        return (x.permute(0, 3, 1, 2) if last else x).contiguous()
    if not isinstance(x, torch.Tensor) or x.ndim != 3:
        found = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise TeacherError("the model's final features are no map", found=found)
    tokens = x[:, int(getattr(model, "num_prefix_tokens", 0)) :]
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise TeacherError("the model's tokens make no square map", found=f"{tokens.shape[1]} tokens")
    return tokens.transpose(1, 2).reshape(len(x), -1, side, side).contiguous()
