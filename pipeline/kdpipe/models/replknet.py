"""RepLKNet: square kernels up to 31 x 31 between 1 x 1 convolutions, alternating with an MLP (arXiv 2203.06717)."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import ClassifierHead, DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from kdpipe.models.backbone import FEATURES, Stage, StagedNet, drop_path_rates, pretrained_cfg
from kdpipe.models.converters import from_published
from kdpipe.models.large_kernel import Branch, ConvBn, LargeKernelConv, folded_before

_PAPER = {
    "license": "mit",
    "first_conv": "stem.0.conv",
    "paper_ids": "arXiv:2203.06717",
    "paper_name": "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
    "origin_url": "https://github.com/DingXiaoH/RepLKNet-pytorch",
}
_384 = {"input_size": (3, 384, 384)}
_HALF = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}

default_cfgs = generate_default_cfgs(
    {
        "replknet_31b.in1k": pretrained_cfg(**_PAPER),
        "replknet_31b.in1k_384": pretrained_cfg(**_PAPER, **_384),
        "replknet_31b.in22k_ft_in1k": pretrained_cfg(**_PAPER),
        "replknet_31b.in22k_ft_in1k_384": pretrained_cfg(**_PAPER, **_384),
        "replknet_31b.in22k": pretrained_cfg(**_PAPER, num_classes=21841),
        "replknet_31l.in22k_ft_in1k_384": pretrained_cfg(**_PAPER, **_384),
        "replknet_31l.in22k": pretrained_cfg(**_PAPER, num_classes=21841),
        "replknet_xl.megdata73m_ft_in1k_320": pretrained_cfg(**_PAPER, **_HALF, input_size=(3, 320, 320)),
    }
)


class RepLKBlock(nn.Module):
    """x + BN, 1 x 1, ReLU, large depthwise kernel, ReLU, 1 x 1."""

    def __init__(self, dim: int, inner: int, branches: Sequence[Branch], drop_path: float, merged: bool) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.pw1 = ConvBn(dim, inner, 1, act=nn.ReLU)
        self.conv_dw = LargeKernelConv(inner, branches, merged=merged)
        self.act = nn.ReLU()
        self.pw2 = ConvBn(inner, dim, 1)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, dim, H, W) in and out."""
        return self.drop_path(self.pw2(self.act(self.conv_dw(self.pw1(self.norm(x)))))) + x

    def reparameterize(self) -> None:
        """Fold every BatchNorm and merge the kernels. Doing it again changes nothing."""
        _fold_pair(self)
        self.conv_dw.reparameterize()


class ConvFfn(nn.Module):
    """x + BN, 1 x 1 to four times the width, GELU, 1 x 1 back."""

    def __init__(self, dim: int, inner: int, drop_path: float) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.pw1 = ConvBn(dim, inner, 1, act=nn.GELU)
        self.pw2 = ConvBn(inner, dim, 1)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, dim, H, W) in and out."""
        return self.drop_path(self.pw2(self.pw1(self.norm(x)))) + x

    def reparameterize(self) -> None:
        """Fold every BatchNorm. Doing it again changes nothing."""
        _fold_pair(self)


class RepLKNet(StagedNet):
    """The network; its final map is after the last BatchNorm.

    Args:
        kernel_sizes, depths, dims: by stage; a depth counts pairs of blocks.
        small_kernel: side of the branch beside the large kernel; None for none.
        dw_ratio: channels of the depthwise convolution to those of the stage.
        merged: large kernels as they are published re-parameterised; the other BatchNorms are there as ever.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as timm's.
    """

    def __init__(
        self,
        *,
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        depths: Sequence[int] = (2, 2, 18, 2),
        dims: Sequence[int] = (128, 256, 512, 1024),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        merged: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (dim, side) in enumerate(zip(dims, kernel_sizes, strict=True)):
            sides = [side] if small_kernel is None else [side, small_kernel]
            branches = [Branch((s, s)) for s in sides]
            blocks: list[nn.Module] = []
            for rate in rates[i]:
                blocks += [
                    RepLKBlock(dim, int(dim * dw_ratio), branches, rate, merged),
                    ConvFfn(dim, 4 * dim, rate),
                ]
            stages.append(Stage(_downsample(dims[i - 1], dim) if i else nn.Identity(), blocks))
        width = dims[0]
        stem = nn.Sequential(
            ConvBn(in_chans, width, 3, stride=2, act=nn.ReLU),
            ConvBn(width, width, 3, groups=width, act=nn.ReLU),
            ConvBn(width, width, 1, act=nn.ReLU),
            ConvBn(width, width, 3, stride=2, groups=width, act=nn.ReLU),
        )
        super().__init__(
            stem=stem,
            stages=stages,
            norm_pre=nn.BatchNorm2d(dims[-1]),
            head=ClassifierHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate),
            dims=dims,
            num_classes=num_classes,
            in_chans=in_chans,
        )


def _downsample(before: int, dim: int) -> nn.Module:
    return nn.Sequential(ConvBn(before, dim, 1, act=nn.ReLU), ConvBn(dim, dim, 3, stride=2, groups=dim, act=nn.ReLU))


def _fold_pair(block: RepLKBlock | ConvFfn) -> None:
    block.pw1.reparameterize()
    block.pw1.conv, block.norm = folded_before(block.norm, block.pw1.conv), nn.Identity()
    block.pw2.reparameterize()


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        RepLKNet, variant, pretrained, pretrained_filter_fn=from_published, feature_cfg=dict(FEATURES), **kwargs
    )


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31B."""
    return _create("replknet_31b", pretrained, **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-31L."""
    return _create("replknet_31l", pretrained, **{"dims": (192, 384, 768, 1536), **kwargs})


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RepLKNet-XL."""
    arch = {
        "kernel_sizes": (27, 27, 27, 13),
        "dims": (256, 512, 1024, 2048),
        "small_kernel": None,
        "dw_ratio": 1.5,
    }
    return _create("replknet_xl", pretrained, **{**arch, **kwargs})
