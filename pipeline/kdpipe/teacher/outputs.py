"""A network's output: its logits, and the features behind them, from one forward."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import first_line

FEATURES = ("pooled", "map")
_NEEDED = ("forward_features", "forward_head")
_LAYOUTS = ("NCHW", "NHWC")


class TeacherOutput(NamedTuple):
    """A teacher's outputs for N views: `logits`, float32 (N, num_classes), and features where they were requested.

    `pooled`, float32 (N, D), is what the classifier sees; `map`, float32 (N, D, h, w), contiguous, the final map as
    `forward_features` gives it. Before a teacher returns it, a network under autocast may have computed it in less.

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
        """Outputs of several batches as one."""
        named = [output.parts() for output in outputs]
        return cls(**{name: torch.cat([parts[name] for parts in named]) for name in named[0]})


class WithFeatures(nn.Module):
    """A network of timm's kind that gives these features beside its logits; without any it is run as it is.

    Args:
        model: shared, not copied: what becomes of its layers becomes of these.
        features: of FEATURES.
    """

    def __init__(self, model: nn.Module, features: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, x: torch.Tensor) -> TeacherOutput:
        """Images (N, 3, S, S) -> the output, in the network's dtype."""
        if not self.features:
            return TeacherOutput(self.model(x))
        model = cast(Any, self.model)
        final = model.forward_features(x)
        pooled = model.forward_head(final, pre_logits=True) if "pooled" in self.features else None
        # The network's own way from map to logits, be its classifier one layer or more.
        logits = model.forward_head(final)
        return TeacherOutput(logits, pooled, as_map(model, final) if "map" in self.features else None)


def with_features(model: nn.Module, features: tuple[str, ...], name: str, x: torch.Tensor) -> WithFeatures:
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
        do = f"Give it {' and '.join(_NEEDED)} as timm's models have them, or {_lower(without(*features))}"
        raise TeacherError(f"the model has no {missing[0]}, so its features can't be had", where=name, do=do)
    made = WithFeatures(model, features)
    if features:
        try:
            with torch.inference_mode():
                output = made(x)
            altered = _altered(cast(Any, model), features, x)
        except TeacherError as e:
            do = e.do or without("map")
            raise TeacherError(e.what, where=name, found=e.found, allowed=e.allowed, do=do) from e
        except Exception as e:  # a network that isn't of timm's kind after all
            what = f"the model can't give its features: {type(e).__name__}: {first_line(e)}"
            raise TeacherError(what, where=name, do=without(*features)) from e
        if output.pooled is not None and output.pooled.ndim != 2:
            found = tuple(output.pooled.shape[1:])
            raise TeacherError("what its classifier sees is no vector", where=name, found=found, do=without("pooled"))
        if altered:
            do = f"Give it operations that aren't in place (relu, not relu_), or {_lower(without(*altered))}"
            what = f"forward_head writes into what it is given, so that the {altered[0]} would be kept as it leaves it"
            raise TeacherError(what, where=name, do=do)
    return made


def without(*targets: str) -> str:
    """What to do where these can't be had: features, or `tail`."""
    return f"Leave out {' and '.join(f'targets.{name}' for name in targets)}"


def as_map(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `forward_features` gives -> (N, D, h, w), contiguous.

    Maps may have their channels first or last; tokens lose those that belong to no place, and make a square of more
    than one: a single token is the class's, or a mean.

    Raises:
        TeacherError: it is neither, or a map whose channel axis is unknown.
    """
    if isinstance(x, torch.Tensor) and x.ndim == 4:
        return (x.permute(0, 3, 1, 2) if channels_last(model, x) else x).contiguous()
    if not isinstance(x, torch.Tensor) or x.ndim != 3:
        found = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise TeacherError("the model's final features are no map", found=found)
    placeless = int(getattr(model, "num_prefix_tokens", 0))
    tokens = x[:, placeless:]
    side = math.isqrt(tokens.shape[1])
    if side < 2:
        what = "the model's final features are the class's token alone, or one of the whole image: they are no map"
        raise TeacherError(what, found=f"{x.shape[1]} tokens, num_prefix_tokens {placeless}")
    if side * side != tokens.shape[1]:
        raise TeacherError("the model's tokens make no square map", found=f"{tokens.shape[1]} tokens")
    return tokens.transpose(1, 2).reshape(len(x), -1, side, side).contiguous()


def channels_last(model: nn.Module, x: torch.Tensor, where: str | None = None) -> bool:
    """Whether a map that `forward_features` gives has its channels last, as the network declares.

    It declares it by `output_fmt`, as timm's do, or by `num_features`, if one side of the map alone is of that size.

    Args:
        model: what gave it.
        x: (N, ?, ?, ?).
        where: what an error names.

    Raises:
        TeacherError: it declares neither.
    """
    output_fmt = str(getattr(model, "output_fmt", "")).upper()
    for layout in _LAYOUTS:
        if output_fmt.endswith(layout):
            return layout == "NHWC"
    width = getattr(model, "num_features", None)
    first, last = x.shape[1] == width, x.shape[3] == width
    if first == last:
        raise TeacherError(
            "the model doesn't declare whether its final map has its channels first or last",
            where=where,
            found=f"a map of {' x '.join(map(str, x.shape[1:]))}, num_features {width}, no output_fmt",
            do=f"Set output_fmt on the network ({' or '.join(_LAYOUTS)}), or num_features, the channels of the map",
        )
    return last


def _altered(model: Any, features: tuple[str, ...], x: torch.Tensor) -> list[str]:
    """Features that the head writes into when it makes the logits.

    Versions count writes, also those through a view, and whatever the values are; inference tensors have none.
    """
    kept: dict[str, tuple[torch.Tensor, int]] = {}
    with torch.inference_mode(False), torch.no_grad():
        final = model.forward_features(x)
        if "map" in features:
            kept["map"] = final, final._version
        if "pooled" in features:
            pooled = model.forward_head(final, pre_logits=True)
            kept["pooled"] = pooled, pooled._version
        model.forward_head(final)
    return [name for name, (tensor, before) in kept.items() if tensor._version != before]


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
