"""NORM's student: a linear module behind its last stage while it is trained, merged into its classifier after."""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TrainingError

# The module whose output is matched with the teacher's map, E (n, N * D, h, w).
EXPANDED = "ft.expand"
_WHERE = "loss norm"


class FeatureTransform(nn.Module):
    """y = x + BN2(W2 E) with E = BN1(W1 x): two 1x1 convolutions without bias, nothing that isn't linear.

    Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching" (2023), section 3.

    Args:
        width: c, channels of x and y.
        expanded: channels of E.
    """

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand = _conv_bn(width, expanded)
        self.contract = _conv_bn(expanded, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return x + self.contract(self.expand(x))

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """M (c, c) and v (c,), float64, with y = x + M x + v at each position, in eval mode."""
        (first, shift), (second, rest) = (_affine(part) for part in (self.expand, self.contract))
        return second @ first, second @ shift + rest


class NormStudent(nn.Module):
    """logits = base.forward_head(ft(base.forward_features(x))).

    Args:
        base: a network of timm's kind whose classifier sees the plain mean of its final map, as ResNets,
            RegNets and EfficientNets are. It becomes part of this one.
        teacher_width: D, channels of the teacher's map.
        expansion: N, how many times the teacher's map is matched.

    Attributes:
        num_classes: C.

    Raises:
        TrainingError: there is something else between the base's map and its logits: a norm, a nonlinear layer,
            another pooling. The module could not be merged.
    """

    def __init__(self, base: nn.Module, teacher_width: int, expansion: int = 8) -> None:
        super().__init__()
        width = _require_linear(base)
        self.base = base
        self.ft = FeatureTransform(width, expansion * teacher_width)
        self.num_classes = int(cast(Any, base).num_classes)
        self.num_features = width
        self.pretrained_cfg = getattr(base, "pretrained_cfg", None)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, S, S) -> the transformed map (n, c, h, w)."""
        return self.ft(cast(Any, self.base).forward_features(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The base's own."""
        logits: torch.Tensor = cast(Any, self.base).forward_head(x, pre_logits=pre_logits)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, S, S) -> logits (n, C), which the loss standardises (`standardised`)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The base's."""
        return _classifier(self.base)

    def no_weight_decay(self) -> set[str]:
        """Names for timm's optimizers."""
        own = getattr(self.base, "no_weight_decay", None)
        return {f"base.{name}" for name in own()} if callable(own) else set()

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the base alone that computes the same in eval mode: W (I + M) x + (b + W v), made in float64."""
        plain = deepcopy(self.base)
        fc = _classifier(plain)
        matrix, shift = self.ft.affine()
        weight = fc.weight.double()
        fc.bias.copy_(fc.bias.double() + weight @ shift)
        fc.weight.copy_(weight + weight @ matrix)
        return plain


def _conv_bn(channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def _affine(part: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and shift of a 1x1 convolution and its BatchNorm with the statistics it has, float64."""
    conv, bn = cast(nn.Conv2d, part[0]), cast(nn.BatchNorm2d, part[1])
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return scale[:, None] * conv.weight.double().flatten(1), bn.bias.double() - scale * bn.running_mean.double()


def _classifier(base: nn.Module) -> nn.Linear:
    fc = cast(Any, base).get_classifier()
    assert isinstance(fc, nn.Linear)
    return fc


def _require_linear(base: nn.Module) -> int:
    """Width of the map from which the base's head makes logits by mean and classifier alone; tried on two maps."""
    get = getattr(base, "get_classifier", None)
    fc = get() if callable(get) else None
    head = getattr(base, "forward_head", None)
    width = getattr(base, "num_features", None)
    plain = isinstance(fc, nn.Linear) and fc.bias is not None and width == fc.in_features
    if not (plain and callable(head) and callable(getattr(base, "forward_features", None))):
        raise _refused(base, "no linear classifier on its map")
    assert isinstance(fc, nn.Linear)
    maps = torch.randn(2, fc.in_features, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = maps.to(fc.weight)
    training = base.training
    try:
        with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
            base.eval()
            found, expected = head(maps), F.linear(maps.mean(dim=(2, 3)), fc.weight, fc.bias)
    except Exception as e:  # heads of other maps raise what they like
        raise _refused(base, "a head of another kind of map") from e
    finally:
        base.train(training)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise _refused(base, "more than a mean between its map and its classifier")
    return fc.in_features


def _refused(base: nn.Module, found: str) -> TrainingError:
    return TrainingError(
        "NORM's module can't be merged into this student",
        where=f"{_WHERE}: {type(base).__name__}",
        found=found,
        allowed="networks with logits = fc(mean(map)): resnet*, regnet*, mobilenetv1*, mobilenetv2*, efficientnet*",
        do="Choose such a student, or another loss: fd, fitnets, mgd",
    )
