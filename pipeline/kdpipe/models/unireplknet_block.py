"""The block of UniRepLKNet, to train and merged."""

from typing import cast

import torch
from timm.layers import DropPath, GlobalResponseNormMlp, SEModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdpipe.models.large_kernel import Branch, LargeKernelConv, folded, scale_and_shift

# The large kernel itself, then (side, dilation) of the branches that are merged into it.
_DILATED = {13: ((13, 1), (5, 1), (7, 2), (3, 3), (3, 4), (3, 5))}


class UniRepLKBlock(nn.Module):
    """x + gamma * BN(MLP with GRN(squeeze-excitation(BN(depthwise)))).

    Args:
        dim: channels in and out.
        kernel: 3, a plain depthwise convolution, or 13, with dilated branches.
        merged: without branches, BatchNorms and gamma, which are in the kernels and the last linear layer.
    """

    def __init__(self, dim: int, kernel: int, drop_path: float, merged: bool) -> None:
        super().__init__()
        if kernel in _DILATED:
            branches = [Branch((side, side), dilation) for side, dilation in _DILATED[kernel]]
            self.conv_dw: nn.Module = LargeKernelConv(dim, branches, merged=merged)
        elif kernel == 3:
            self.conv_dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=merged)
        else:
            raise ValueError(f"kernels are 3 or {', '.join(map(str, _DILATED))}, not {kernel}")
        self.norm: nn.Module = nn.Identity() if merged else nn.BatchNorm2d(dim)
        self.se = SEModule(dim, rd_channels=dim // 4)
        self.mlp = GlobalResponseNormMlp(dim, 4 * dim, bias=(True, merged))
        self.norm_out: nn.Module = nn.Identity() if merged else nn.BatchNorm2d(dim)
        self.gamma = None if merged else nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, dim, H, W) in and out."""
        shortcut = x
        x = self.se(self.norm(self.conv_dw(x)))
        x = self.norm_out(self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        if self.gamma is not None:
            x = x * self.gamma.reshape(1, -1, 1, 1)
        return self.drop_path(x) + shortcut

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold BatchNorms, gamma and GRN's bias, merge the kernels. Doing it again changes nothing."""
        if isinstance(self.conv_dw, LargeKernelConv):
            self.conv_dw.reparameterize()
            self.conv_dw.branches[0] = folded(cast(nn.Conv2d, self.conv_dw.branches[0]), self.norm)
        else:
            self.conv_dw = folded(cast(nn.Conv2d, self.conv_dw), self.norm)
        self.norm = nn.Identity()
        if not isinstance(self.norm_out, _BatchNorm):
            return
        assert self.gamma is not None
        scale, shift = scale_and_shift(self.norm_out)
        was, grn, gamma = cast(nn.Linear, self.mlp.fc2), self.mlp.grn, self.gamma.double()
        weight = was.weight.double()
        self.mlp.fc2 = nn.Linear(
            was.in_features, was.out_features, device=was.weight.device, dtype=was.weight.dtype
        ).requires_grad_(was.weight.requires_grad)
        self.mlp.fc2.weight.copy_((gamma * scale)[:, None] * weight)
        self.mlp.fc2.bias.copy_(gamma * (scale * (weight @ grn.bias.double()) + shift))
        grn.bias.zero_()
        self.norm_out, self.gamma = nn.Identity(), None
