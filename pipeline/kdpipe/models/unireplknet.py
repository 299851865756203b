"""UniRepLKNet: 13 x 13 kernels made of dilated branches, with squeeze-excitation and GRN (arXiv 2311.15599)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d, NormMlpClassifierHead, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from kdpipe.models.backbone import FEATURES, Stage, StagedNet, drop_path_rates, pretrained_cfg
from kdpipe.models.converters import from_published
from kdpipe.models.unireplknet_block import UniRepLKBlock

_norm = partial(LayerNorm2d, eps=1e-6)


class UniRepLKNet(StagedNet):
    """The network; its final map is before the norm, which comes after pooling.

    Args:
        depths, dims: by stage.
        kernel_sizes: by stage, the kernels of its blocks; a shorter list repeats.
        merged: as published re-parameterised, see UniRepLKBlock.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as timm's.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[Sequence[int]] = ((3,), (13,), (13, 3, 3), (13,)),
        merged: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (dim, sides) in enumerate(zip(dims, kernel_sizes, strict=True)):
            blocks = [UniRepLKBlock(dim, sides[j % len(sides)], rate, merged) for j, rate in enumerate(rates[i])]
            # The first stage's downsampling is the second half of the stem.
            down = nn.Sequential(_half(dims[i - 1], dim), _norm(dim)) if i else nn.Identity()
            stages.append(Stage(down, blocks))
        half = dims[0] // 2
        super().__init__(
            stem=nn.Sequential(_half(in_chans, half), _norm(half), nn.GELU(), _half(half, dims[0]), _norm(dims[0])),
            stages=stages,
            norm_pre=nn.Identity(),
            head=NormMlpClassifierHead(
                dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=_norm
            ),
            dims=dims,
            num_classes=num_classes,
            in_chans=in_chans,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _half(in_chs: int, out_chs: int) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, 3, stride=2, padding=1)


_PAPER = {
    "license": "apache-2.0",
    "first_conv": "stem.0",
    "paper_ids": "arXiv:2311.15599",
    "paper_name": "UniRepLKNet: A Universal Perception Large-Kernel ConvNet",
    "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
}


def _cfg(file: str, side: int = 224, **changes: Any) -> dict[str, Any]:
    hub = {"hf_hub_id": "DingXiaoH/UniRepLKNet", "hf_hub_filename": f"unireplknet_{file}.pth"}
    return pretrained_cfg(**_PAPER, **hub, input_size=(3, side, side), **changes)


default_cfgs = generate_default_cfgs(
    {
        "unireplknet_a.in1k": _cfg("a_in1k_224_acc77.03"),
        "unireplknet_f.in1k": _cfg("f_in1k_224_acc78.58"),
        "unireplknet_p.in1k": _cfg("p_in1k_224_acc80.23"),
        "unireplknet_n.in1k": _cfg("n_in1k_224_acc81.64"),
        "unireplknet_t.in1k": _cfg("t_in1k_224_acc83.21"),
        "unireplknet_s.in1k": _cfg("s_in1k_224_acc83.91"),
        "unireplknet_s.in22k_ft_in1k_384": _cfg("s_in22k_to_in1k_384_acc86.44", 384),
        "unireplknet_s.in22k": _cfg("s_in22k_pretrain", num_classes=21841),
        "unireplknet_b.in22k_ft_in1k_384": _cfg("b_in22k_to_in1k_384_acc87.40", 384),
        "unireplknet_b.in22k": _cfg("b_in22k_pretrain", num_classes=21841),
        "unireplknet_l.in22k_ft_in1k_384": _cfg("l_in22k_to_in1k_384_acc87.88", 384),
        "unireplknet_l.in22k": _cfg("l_in22k_pretrain", 192, num_classes=21841),
        "unireplknet_xl.in22k_ft_in1k_384": _cfg("xl_in22k_to_in1k_384_acc87.96", 384),
        "unireplknet_xl.in22k": _cfg("xl_in22k_pretrain", 192, num_classes=21841),
    }
)
# Of the small ones all blocks of the third stage are large.
_SMALL = {"kernel_sizes": ((3,), (13,), (13,), (13,))}


def _create(letter: str, dim: int, pretrained: bool, arch: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    made = {"dims": (dim, 2 * dim, 4 * dim, 8 * dim), **arch, **kwargs}
    return build_model_with_cfg(
        UniRepLKNet,
        f"unireplknet_{letter}",
        pretrained,
        pretrained_filter_fn=from_published,
        feature_cfg=dict(FEATURES),
        **made,
    )


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-A."""
    return _create("a", 40, pretrained, {"depths": (2, 2, 6, 2), **_SMALL}, kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-F."""
    return _create("f", 48, pretrained, {"depths": (2, 2, 6, 2), **_SMALL}, kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-P."""
    return _create("p", 64, pretrained, {"depths": (2, 2, 6, 2), **_SMALL}, kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-N."""
    return _create("n", 80, pretrained, {"depths": (2, 2, 8, 2), **_SMALL}, kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-T."""
    arch = {"depths": (3, 3, 18, 3), "kernel_sizes": ((3,), (13,), (13, 3), (13,))}
    return _create("t", 80, pretrained, arch, kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-S."""
    return _create("s", 96, pretrained, {}, kwargs)


@register_model
def unireplknet_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-B."""
    return _create("b", 128, pretrained, {}, kwargs)


@register_model
def unireplknet_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-L."""
    return _create("l", 192, pretrained, {}, kwargs)


@register_model
def unireplknet_xl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """UniRepLKNet-XL."""
    return _create("xl", 256, pretrained, {}, kwargs)
