"""Depthwise convolutions as products with Toeplitz matrices: more multiplications, on units that do many at once.

A convolution along an axis of n pixels is a product with an n x n matrix whose diagonals are the kernel's taps. A
kernel that reaches beyond the map from everywhere has a matrix without a zero, and then nothing is wasted.
"""

import torch
from torch import nn


class StripeBand(nn.Module):
    """A stripe: a matrix along its long axis, for each shift along the short one.

    Args:
        conv: depthwise, odd sides, stride 1, half padding.
        height, width: of the map.
    """

    band: torch.Tensor

    def __init__(self, conv: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        kernel = conv.weight.detach()[:, 0]
        self.upright = kernel.shape[1] >= kernel.shape[2]
        if not self.upright:
            kernel = kernel.transpose(1, 2)
        self.shifts, side = kernel.shape[2], height if self.upright else width
        band = _band(kernel, side)  # (C, side, side, shifts)
        # The shifts one after the other, as the input's copies are stacked.
        self.register_buffer("band", band.permute(0, 1, 3, 2).reshape(len(kernel), side, -1).contiguous())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach()[:, None, None], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        if not self.upright:
            x = x.transpose(2, 3)
        n, channels, along, across = x.shape
        half = self.shifts // 2
        wide = nn.functional.pad(x.permute(1, 2, 0, 3), (half, half))
        shifted = torch.stack([wide[..., i : i + across] for i in range(self.shifts)], 1)
        y = _product(self.band, shifted.reshape(channels, -1, n * across), self.bias)
        y = y.reshape(channels, along, n, across).permute(2, 0, 1, 3)
        return y if self.upright else y.transpose(2, 3)


class FullBand(nn.Module):
    """A kernel that is large on both sides: one matrix from every pixel to every pixel. Arguments as above."""

    band: torch.Tensor

    def __init__(self, conv: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        kernel = conv.weight.detach()[:, 0]
        channels, pixels = len(kernel), height * width
        rows = _band(kernel, height).transpose(2, 3)  # (C, H out, w, H in): taps along the width are left
        both = torch.stack([_band(rows[:, i], width) for i in range(height)], 1)  # (C, H out, W out, W in, H in)
        self.register_buffer("band", both.transpose(3, 4).reshape(channels, pixels, pixels).contiguous())
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach()[:, None, None], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        n, channels, height, width = x.shape
        pixels = x.permute(1, 2, 3, 0).reshape(channels, height * width, n)
        return _product(self.band, pixels, self.bias).reshape(channels, height, width, n).permute(3, 0, 1, 2)


def _band(kernel: torch.Tensor, side: int) -> torch.Tensor:
    """Taps along axis 1 of (C, taps, R) as (C, side out, side in, R): [o, i] is the tap i - o from the centre."""
    taps = kernel.shape[1]
    at = torch.arange(side, device=kernel.device)
    tap = at[None, :] - at[:, None] + taps // 2
    inside = (tap >= 0) & (tap < taps)
    return torch.where(inside[..., None], kernel[:, tap.clamp(0, taps - 1)], 0)


def _product(band: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    y = band @ x
    return y if bias is None else y + bias.to(y.dtype)  # autocast takes products, but no sums
