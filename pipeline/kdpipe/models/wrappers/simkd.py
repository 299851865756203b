"""SimKD's student: its own features, a projector to the teacher's width, and the teacher's classifier."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from kdpipe.errors import TrainingError
from kdpipe.models.build import ModelSpec, build, first_line
from kdpipe.models.config import ModelConfig

# The module whose output is the projected map (n, D, h, w), whose mean the classifier sees.
PROJECTED = "transfer"
# In the table of pipeline/kdpipe/models/trust.py: no path that would be imported.
_NAME = "kdpipe:simkd_student"
_WHERE = "loss simkd"


class SimkdStudent(nn.Module):
    """logits = head(mean over positions of transfer(base.forward_features(x))).

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022). `transfer` is a bottleneck: 1x1,
    3x3 and 1x1 convolution, each with BatchNorm, ReLU after the first two. After the third the paper has a ReLU
    too, because its teachers' features are not negative; before a classifier that reads other features it would cut
    them off.

    Args:
        base: a network of timm's kind, which it becomes part of. What only its own logits need is taken away.
        head: the teacher's classifier (D -> C); copied and frozen.
        factor: the bottleneck's width is D // factor.
        relu: whether `transfer` ends in a ReLU.

    Attributes:
        num_classes: C.
        settings: `factor` and `relu`.

    Raises:
        TrainingError: the base has no map of features, or another number of classes.
    """

    def __init__(self, base: nn.Module, head: nn.Linear, *, factor: int = 2, relu: bool = False) -> None:
        super().__init__()
        classes = int(getattr(base, "num_classes", head.out_features))
        if classes != head.out_features:
            raise TrainingError(
                "student and teacher have different numbers of classes, and the student gets the teacher's classifier",
                where=_WHERE,
                found=classes,
                allowed=head.out_features,
            )
        channels = _strip(base)
        width, inner = head.in_features, max(1, head.in_features // factor)
        self.base = base
        self.transfer = nn.Sequential(
            *_conv_bn(channels, inner, 1),
            nn.ReLU(),
            *_conv_bn(inner, inner, 3),
            nn.ReLU(),
            *_conv_bn(inner, width, 1),
            nn.ReLU() if relu else nn.Identity(),
        )
        self.head = nn.utils.skip_init(nn.Linear, width, classes, device=next(base.parameters()).device)
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            self.head.bias.copy_(head.bias)
        self.head.requires_grad_(False)
        self.num_classes, self.num_features, self.settings = classes, width, {"factor": factor, "relu": relu}
        self.pretrained_cfg = getattr(base, "pretrained_cfg", None)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, S, S) -> the projected map (n, D, h, w)."""
        return self.transfer(_final_map(self.base, x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """A projected map (n, D, h, w) -> logits (n, C), or with `pre_logits` what the classifier sees, (n, D)."""
        pooled = x.float().mean(dim=(2, 3)) if x.dtype != torch.float64 else x.mean(dim=(2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, S, S) -> logits (n, C)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The teacher's."""
        return self.head

    def no_weight_decay(self) -> set[str]:
        """Names for timm's optimizers."""
        own = getattr(self.base, "no_weight_decay", None)
        return {f"base.{name}" for name in own()} if callable(own) else set()


def simkd_student(
    model: str,
    teacher_width: int,
    num_classes: int,
    model_kwargs: Mapping[str, Any] | None = None,
    factor: int = 2,
    relu: bool = False,
) -> SimkdStudent:
    """A SimkdStudent with random weights, for those of a file: what `kept` writes into its header builds it.

    Args:
        model, model_kwargs: of the base, as in ModelConfig.
        teacher_width: D.
        num_classes: C.
        factor, relu: as SimkdStudent's.

    Raises:
        TeacherError: the base can't be built.
        TrainingError: as SimkdStudent.
    """
    base = build(ModelConfig(model=model, model_kwargs=dict(model_kwargs or {}), num_classes=num_classes)).module
    return SimkdStudent(base, nn.Linear(teacher_width, num_classes), factor=factor, relu=relu)


def kept(built: ModelSpec) -> ModelSpec:
    """`built`, whose module is a SimkdStudent and whose name is the base's, under the name that builds it all."""
    module = built.module
    assert isinstance(module, SimkdStudent)
    kwargs = {
        "model": built.name,
        "model_kwargs": built.kwargs,
        "teacher_width": module.num_features,
        **module.settings,
    }
    return replace(built, name=_NAME, kwargs=kwargs)


def _conv_bn(channels: int, width: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width)


def _final_map(base: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `forward_features` gives, as (n, c, h, w)."""
    x = cast(Any, base).forward_features(x)
    if x.ndim == 3:
        tokens = x[:, int(getattr(base, "num_prefix_tokens", 0) or 0) :]
        side = round(tokens.shape[1] ** 0.5)
        return tokens.movedim(-1, 1).unflatten(2, (side, side))
    return x.movedim(-1, 1) if getattr(base, "output_fmt", "NCHW") == "NHWC" else x


def _strip(base: nn.Module) -> int:
    """Take away what the features don't need, and return their number of channels.

    Parameters that are never used would stop data-parallel training, and be kept for nothing. Which those are is
    seen from a forward pass: a name would be another for each network.
    """
    side = getattr(getattr(base, "patch_embed", None), "img_size", None)
    feed = (getattr(base, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    size = tuple(side) if isinstance(side, tuple | list) else tuple(feed[-2:])
    named = [(name, p) for name, p in base.named_parameters() if p.requires_grad]
    training = base.training
    try:
        with torch.inference_mode(False), torch.enable_grad():
            example = next(base.parameters())
            x = torch.zeros(1, feed[0], *size, dtype=example.dtype, device=example.device)
            features = _final_map(base.eval(), x)
            found = torch.autograd.grad(features.sum(), [p for _, p in named], allow_unused=True) if named else ()
            channels = int(features.shape[1])
    except Exception as e:  # a network that isn't of timm's kind raises what it likes
        raise TrainingError(
            f"the student's map of features can't be had: {type(e).__name__}: {first_line(e)}",
            where=_WHERE,
            found=type(base).__name__,
            allowed="a network with forward_features(), as timm's have, whose features are a map or square tokens",
        ) from e
    finally:
        base.train(training)
    _drop(base, {id(p) for (_, p), gradient in zip(named, found, strict=True) if gradient is None})
    return channels


def _drop(module: nn.Module, unused: set[int]) -> None:
    """Replace modules all of whose parameters are unused; freeze single ones."""
    for name, child in list(module.named_children()):
        own = list(child.parameters())
        if own and all(id(p) in unused for p in own):
            setattr(module, name, nn.Identity())
        else:
            _drop(child, unused)
    for parameter in module.parameters(recurse=False):
        if id(parameter) in unused:
            parameter.requires_grad_(False)
