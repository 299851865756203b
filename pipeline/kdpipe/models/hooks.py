"""What a network computes on its way: maps of named modules, and what its classifier sees."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import FeatureHooks
from torch import nn

from kdpipe.errors import TrainingError


class StudentHooks:
    """Catches outputs of a network's modules with timm's hooks; take them after each forward.

    Args:
        model: any network; hooks stay on it, and copies of it take them along.
        names: modules whose output is a map, as in `model.named_modules()`.
        pooled: also catch what the classifier sees.

    Raises:
        TrainingError: there is no such module, or no classifier.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] = (), *, pooled: bool = False) -> None:
        modules = dict(model.named_modules())
        absent = [name for name in names if name not in modules]
        if absent:
            close = [name for name in modules if name.count(".") <= 1 and name]
            raise TrainingError(
                "the student has no such module",
                where="loss.student_layers",
                found=absent[0],
                allowed=", ".join(close[:24]),
            )
        self.names = tuple(dict.fromkeys(names))
        self._tokens = int(getattr(model, "num_prefix_tokens", 0) or 0)
        self._channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        hooks: list[dict[str, Any]] = [{"module": name, "hook_type": "forward"} for name in self.names]
        self._classifier = classifier_name(model) if pooled else None
        if self._classifier is not None:
            hooks.append({"module": self._classifier, "hook_type": "forward_pre"})
        self._hooks = FeatureHooks(hooks, model.named_modules()) if hooks else None

    def take(self, device: torch.device) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """What the last forward on a device left: pooled (n, d) or None, and maps (n, c, h, w)."""
        if self._hooks is None:
            return None, ()
        found = self._hooks.get_output(device)
        wanted = self.names if self._classifier is None else (*self.names, self._classifier)
        silent = [name for name in wanted if name not in found]
        if silent:
            raise TrainingError(
                "a module takes no part in the student's output",
                where=silent[0],
                do="Name others in loss.student_layers, or use a loss that takes no feature of the student",
            )
        pooled = None if self._classifier is None else _vectors(found[self._classifier])
        return pooled, tuple(self._map(found[name], name) for name in self.names)

    def _map(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if x.ndim == 4:
            return x.movedim(-1, 1) if self._channels_last else x
        if x.ndim == 3:
            tokens = x[:, self._tokens :]
            side = round(tokens.shape[1] ** 0.5)
            if side**2 == tokens.shape[1]:
                return tokens.movedim(-1, 1).unflatten(2, (side, side))
        raise TrainingError(
            "the module's output is no map",
            where=f"loss.student_layers: {name}",
            found=tuple(x.shape),
            allowed="(n, c, h, w), or tokens (n, h * h, c)",
            do="Name another module",
        )


def _vectors(x: torch.Tensor) -> torch.Tensor:
    """What a classifier sees, (n, d); one that is a 1x1 convolution sees (n, d, 1, 1)."""
    if x.ndim > 1 and x.shape[1:].numel() == x.shape[1]:
        return x.flatten(1)
    raise TrainingError(
        "the student's classifier sees no vector",
        found=tuple(x.shape),
        allowed="(n, d)",
        do="Use a loss that takes no pooled feature of the student",
    )


def classifier_name(model: nn.Module) -> str:
    """Name of the linear layer that gives the logits.

    Raises:
        TrainingError: none is known.
    """
    get = getattr(model, "get_classifier", None)
    classifier = get() if callable(get) else None
    for name, module in model.named_modules():
        if module is classifier and name:
            return name
    raise TrainingError(
        "the student's classifier is unknown",
        where=type(model).__name__,
        allowed="a network with get_classifier(), as timm's have",
        do="Use a loss that takes no pooled feature of the student",
    )


def usual_maps(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the modules that give the last `count` maps of different depth, by timm's feature_info.

    Of networks whose blocks all have one resolution, the last block and those evenly before it: of 12 blocks the
    ninth and the last (ScaleKD's choice).

    Raises:
        TrainingError: the network doesn't declare it.
    """
    info = getattr(model, "feature_info", None)
    named = [str(one["module"]) for one in info] if isinstance(info, list) else []
    sides = [one.get("reduction") for one in info] if isinstance(info, list) else []
    if len(named) < count:
        raise TrainingError(
            "the student doesn't declare where its maps are",
            where=type(model).__name__,
            found=f"{len(named)} maps",
            allowed=f"{count} or more",
            do="Name its modules: --set loss.student_layers=[layer3,layer4]",
        )
    if count > 1 and len(set(sides)) == 1:
        quarter = -(-len(named) // 4)
        return tuple(named[-1 - quarter * back] for back in reversed(range(count)))
    return tuple(named[-count:]) if count else ()
