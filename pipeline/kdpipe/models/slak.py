"""SLaK: ConvNeXt whose depthwise kernels are sums of 51 x 5 and 5 x 51 stripes (arXiv 2207.03620)."""

from collections.abc import Sequence
from typing import Any, cast

from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from torch import nn

from kdpipe.models.backbone import FEATURES, pretrained_cfg
from kdpipe.models.converters import from_published
from kdpipe.models.large_kernel import Branch, LargeKernelConv

_PAPER = {
    "license": "mit",
    "first_conv": "stem.0",
    "paper_ids": "arXiv:2207.03620",
    "paper_name": "More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity",
    "origin_url": "https://github.com/VITA-Group/SLaK",
}

default_cfgs = generate_default_cfgs(
    {
        "slak_nano.untrained": pretrained_cfg(
            first_conv="stem.0", input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0
        ),
        "slak_tiny.in1k": pretrained_cfg(**_PAPER),
        "slak_small.in1k": pretrained_cfg(**_PAPER),
        "slak_base.in1k": pretrained_cfg(**_PAPER),
    }
)


class SLaK(ConvNeXt):
    """timm's ConvNeXt with another depthwise convolution; the final map is before the norm, as there.

    Args:
        kernel_sizes: the long side of the kernels, by stage.
        small_kernel: the short side of the stripes, and the side of the small square beside them.
        decomposed: two stripes; else one square kernel of the long side.
        others: ConvNeXt's own arguments.
    """

    def __init__(
        self,
        *,
        kernel_sizes: Sequence[int] = (51, 49, 47, 13),
        small_kernel: int = 5,
        decomposed: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(kernel_sizes=1, **others)
        if len(kernel_sizes) != len(self.stages):
            raise ValueError(f"kernel_sizes has {len(kernel_sizes)} entries for {len(self.stages)} stages")
        for stage, side in zip(self.stages, kernel_sizes, strict=True):
            shapes = [(side, small_kernel), (small_kernel, side)] if decomposed else [(side, side)]
            if small_kernel < side:
                shapes.append((small_kernel, small_kernel))
            for block in cast(nn.Sequential, stage.blocks):
                was = cast(nn.Conv2d, block.conv_dw)
                made = LargeKernelConv(was.out_channels, [Branch(s, was.dilation[0]) for s in shapes])
                block.conv_dw = made
                for module in made.modules():
                    if isinstance(module, nn.Conv2d):
                        trunc_normal_(module.weight, std=0.02)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        SLaK, variant, pretrained, pretrained_filter_fn=from_published, feature_cfg=dict(FEATURES), **kwargs
    )


@register_model
def slak_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """0.3M parameters and a classifier, for images of 8 to 64 pixels: stride 8, so that a map is left of each.

    Its kernels are as wide as such maps, but not wider than 13: beyond that CPUs train stripes many times slower.
    Its blocks start at full strength rather than at 1e-6, because it is trained for few epochs.
    """
    arch = {
        "depths": (1, 1, 2, 1),
        "dims": (16, 40, 80, 120),
        "kernel_sizes": (13, 13, 13, 7),
        "small_kernel": 3,
        "patch_size": 1,
        "ls_init_value": 1.0,
    }
    return _create("slak_nano", pretrained, **{**arch, **kwargs})


@register_model
def slak_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SLaK-T."""
    arch = {"depths": (3, 3, 9, 3), "dims": (124, 249, 499, 998)}
    return _create("slak_tiny", pretrained, **{**arch, **kwargs})


@register_model
def slak_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SLaK-S."""
    arch = {"depths": (3, 3, 27, 3), "dims": (124, 249, 499, 998)}
    return _create("slak_small", pretrained, **{**arch, **kwargs})


@register_model
def slak_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SLaK-B."""
    arch = {"depths": (3, 3, 27, 3), "dims": (166, 332, 665, 1331)}
    return _create("slak_base", pretrained, **{**arch, **kwargs})
