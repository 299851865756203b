"""Depthwise convolutions with very large kernels: parallel branches to train, as few kernels as possible to run."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm


class Branch(NamedTuple):
    """One depthwise kernel, (height, width), both odd; `dilation` spreads its taps."""

    kernel: tuple[int, int]
    dilation: int = 1

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from the first tap to the last, by axis."""
        height, width = self.kernel
        return (height - 1) * self.dilation + 1, (width - 1) * self.dilation + 1


class ConvBn(nn.Module):
    """A convolution without bias that keeps the size (at stride 1), BatchNorm, and an activation where one is given.

    Args:
        in_chs, out_chs: channels; `groups` as in torch.
        kernel: one odd side, or (height, width).
        act: class of the activation.

    Raises:
        ValueError: an even side, which has no centre.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        if not (height % 2 and width % 2):
            raise ValueError(f"kernels have odd sides, not {height} x {width}")
        padding = (height // 2 * dilation, width // 2 * dilation)
        self.conv = nn.Conv2d(in_chs, out_chs, (height, width), stride, padding, dilation, groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_chs)
        self.act = nn.Identity() if act is None else act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply all three, in this order."""
        return self.act(self.bn(self.conv(x)))

    def reparameterize(self) -> None:
        """Fold the BatchNorm into the convolution. Doing it again changes nothing."""
        self.conv, self.bn = folded(self.conv, self.bn), nn.Identity()


class LargeKernelConv(nn.Module):
    """The sum of depthwise branches, each a convolution with BatchNorm, at stride 1 and the same size.

    After `reparameterize` the branches that fit inside another are added to it: one biased convolution where one
    kernel covers all, two for a pair of stripes.

    Args:
        channels: of the input and the output.
        branches: kernels; the sum runs in this order.
        merged: build it as it is after `reparameterize`.
    """

    def __init__(self, channels: int, branches: Sequence[Branch], *, merged: bool = False) -> None:
        super().__init__()
        self.branch_specs = tuple(branches)
        self.branches = nn.ModuleList(
            ConvBn(channels, channels, b.kernel, dilation=b.dilation, groups=channels) for b in self.branch_specs
        )
        if merged:
            self.reparameterize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) in and out."""
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold and merge the branches, in float64. Doing it again changes nothing."""
        if not isinstance(self.branches[0], ConvBn):
            return
        kernels: list[tuple[torch.Tensor, torch.Tensor]] = []
        # The largest first, so that whatever fits into a kernel finds it there.
        for i in sorted(
            range(len(self.branch_specs)),
            key=lambda i: -self.branch_specs[i].extent[0] * self.branch_specs[i].extent[1],
        ):
            weight, bias = _folded_weights(*_pair(self.branches[i]))
            weight = _spread(weight, self.branch_specs[i].dilation)
            for at, (kernel, others) in enumerate(kernels):
                if _fits(weight, kernel):
                    kernels[at] = (kernel + _centred(weight, kernel), others + bias)
                    break
            else:
                kernels.append((weight, bias))
        like = self.branches[0].conv
        self.branches = nn.ModuleList(_conv(like, weight, bias, spread=True) for weight, bias in kernels)


def folded(conv: nn.Conv2d, bn: nn.Module) -> nn.Conv2d:
    """One convolution equal to `conv` and then `bn` in eval mode; `conv` itself where `bn` is no BatchNorm."""
    if not isinstance(bn, _BatchNorm):
        return conv
    return _conv(conv, *_folded_weights(conv, bn))


@torch.no_grad()
def folded_before(bn: nn.Module, conv: nn.Conv2d) -> nn.Conv2d:
    """One convolution equal to `bn` in eval mode and then `conv`, which has no padding (padding hides the shift)."""
    if not isinstance(bn, _BatchNorm):
        return conv
    scale, shift = scale_and_shift(bn)
    weight = conv.weight.double()
    bias = (weight * shift[:, None, None]).sum((1, 2, 3))
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return _conv(conv, weight * scale[:, None, None], bias)


@torch.no_grad()
def scale_and_shift(bn: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """What `bn` does in eval mode, y = scale * x + shift: two float64 tensors (C,)."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def _pair(branch: nn.Module) -> tuple[nn.Conv2d, _BatchNorm]:
    assert isinstance(branch, ConvBn)
    return branch.conv, cast(_BatchNorm, branch.bn)


@torch.no_grad()
def _folded_weights(conv: nn.Conv2d, bn: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float64: many small errors are summed when kernels are merged."""
    scale, shift = scale_and_shift(bn)
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    return weight, shift if conv.bias is None else shift + scale * conv.bias.double()


def _spread(weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """(C, 1, h, w) with `dilation` -> the same taps in a kernel without, zeros between them."""
    channels, _, height, width = weight.shape
    wide = weight.new_zeros(channels, 1, (height - 1) * dilation + 1, (width - 1) * dilation + 1)
    wide[..., ::dilation, ::dilation] = weight
    return wide


def _fits(weight: torch.Tensor, kernel: torch.Tensor) -> bool:
    return weight.shape[2] <= kernel.shape[2] and weight.shape[3] <= kernel.shape[3]


def _centred(weight: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    rows, columns = ((kernel.shape[axis] - weight.shape[axis]) // 2 for axis in (2, 3))
    return pad(weight, (columns, columns, rows, rows))


def _conv(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor, *, spread: bool = False) -> nn.Conv2d:
    """A convolution as `like` with these weights; where `spread`, at dilation 1 and the padding of its kernel."""
    conv = torch.nn.utils.skip_init(
        nn.Conv2d,
        like.in_channels,
        like.out_channels,
        weight.shape[2:],
        stride=like.stride,
        padding=tuple(side // 2 for side in weight.shape[2:]) if spread else like.padding,
        dilation=1 if spread else like.dilation,
        groups=like.groups,
        device=like.weight.device,
        dtype=like.weight.dtype,
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)
    return conv.requires_grad_(like.weight.requires_grad)
