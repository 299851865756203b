"""Checkpoints as the papers' repositories write them: their keys and shapes spelled out, random values."""

from collections.abc import Sequence

import torch

State = dict[str, torch.Tensor]


class Writer:
    """Adds layers to a state dict under the names they are given. BatchNorms have statistics of their own."""

    def __init__(self, seed: int = 0) -> None:
        self.state: State = {}
        self._generator = torch.Generator().manual_seed(seed)

    def put(self, key: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> None:
        if torch.get_default_device().type == "meta":
            self.state[key] = torch.empty(shape)
        else:
            self.state[key] = torch.randn(shape, generator=self._generator) * scale + shift

    def conv(self, key: str, out: int, into: int, *kernel: int, bias: bool = False) -> None:
        height, width = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
        self.put(f"{key}.weight", out, into, height, width, scale=(2 / (into * height * width)) ** 0.5)
        if bias:
            self.put(f"{key}.bias", out, scale=0.1)

    def norm(self, key: str, channels: int) -> None:
        self.put(f"{key}.weight", channels, scale=0.2, shift=1)
        self.put(f"{key}.bias", channels, scale=0.2)

    def bn(self, key: str, channels: int) -> None:
        self.norm(key, channels)
        self.put(f"{key}.running_mean", channels, scale=0.3)
        self.put(f"{key}.running_var", channels, scale=0.1, shift=1)
        self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def conv_bn(self, key: str, out: int, into: int, *kernel: int) -> None:
        self.conv(f"{key}.conv", out, into, *kernel)
        self.bn(f"{key}.bn", out)

    def linear(self, key: str, out: int, into: int, bias: bool = True) -> None:
        self.put(f"{key}.weight", out, into, scale=into**-0.5)
        if bias:
            self.put(f"{key}.bias", out, scale=0.1)


def _convnext_skeleton(w: Writer, dims: Sequence[int], depths: Sequence[int], classes: int) -> None:
    w.conv("downsample_layers.0.0", dims[0], 3, 4, bias=True)
    w.norm("downsample_layers.0.1", dims[0])
    for i in (1, 2, 3):
        w.norm(f"downsample_layers.{i}.0", dims[i - 1])
        w.conv(f"downsample_layers.{i}.1", dims[i], dims[i - 1], 2, bias=True)
    for i in range(4):
        for j in range(depths[i]):
            at = f"stages.{i}.{j}"
            w.put(f"{at}.gamma", dims[i], scale=0.3)
            w.norm(f"{at}.norm", dims[i])
            w.linear(f"{at}.pwconv1", 4 * dims[i], dims[i])
            w.linear(f"{at}.pwconv2", dims[i], 4 * dims[i])
    w.norm("norm", dims[3])
    w.linear("head", classes, dims[3])


def slak(
    dims: Sequence[int],
    depths: Sequence[int],
    kernels: Sequence[int] = (51, 49, 47, 13),
    small: int = 5,
    classes: int = 1000,
    stripes: str | None = "LoRA",
) -> State:
    """SLaK; `stripes` is LoRA, in early versions Decom, and None for square kernels."""
    w = Writer()
    _convnext_skeleton(w, dims, depths, classes)
    for i, (dim, side) in enumerate(zip(dims, kernels, strict=True)):
        for j in range(depths[i]):
            at = f"stages.{i}.{j}.large_kernel"
            if stripes:
                w.conv_bn(f"{at}.{stripes}1", dim, 1, side, small)
                w.conv_bn(f"{at}.{stripes}2", dim, 1, small, side)
            else:
                w.conv_bn(f"{at}.lkb_origin", dim, 1, side)
            if small < side:
                w.conv_bn(f"{at}.small_conv", dim, 1, small)
    return w.state


def distilled_convnext(dims: Sequence[int], depths: Sequence[int], classes: int = 1000) -> State:
    """The small-kernel student that SLaK's authors publish."""
    w = Writer()
    _convnext_skeleton(w, dims, depths, classes)
    for i, dim in enumerate(dims):
        for j in range(depths[i]):
            w.conv_bn(f"stages.{i}.{j}.large_kernel.lkb_origin", dim, 1, 7)
    return w.state


def replknet(
    dims: Sequence[int],
    depths: Sequence[int],
    kernels: Sequence[int],
    small: int | None = 5,
    ratio: float = 1.0,
    classes: int = 1000,
    merged: bool = False,
) -> State:
    """RepLKNet, in training form or with merged kernels."""
    w = Writer()
    w.conv_bn("stem.0", dims[0], 3, 3)
    w.conv_bn("stem.1", dims[0], 1, 3)
    w.conv_bn("stem.2", dims[0], dims[0], 1)
    w.conv_bn("stem.3", dims[0], 1, 3)
    for i, (dim, side) in enumerate(zip(dims, kernels, strict=True)):
        inner = int(dim * ratio)
        for j in range(depths[i]):
            at = f"stages.{i}.blocks.{2 * j}"
            w.bn(f"{at}.prelkb_bn", dim)
            w.conv_bn(f"{at}.pw1", inner, dim, 1)
            if merged:
                w.conv(f"{at}.large_kernel.lkb_reparam", inner, 1, side, bias=True)
            else:
                w.conv_bn(f"{at}.large_kernel.lkb_origin", inner, 1, side)
                if small is not None:
                    w.conv_bn(f"{at}.large_kernel.small_conv", inner, 1, small)
            w.conv_bn(f"{at}.pw2", dim, inner, 1)
            at = f"stages.{i}.blocks.{2 * j + 1}"
            w.bn(f"{at}.preffn_bn", dim)
            w.conv_bn(f"{at}.pw1", 4 * dim, dim, 1)
            w.conv_bn(f"{at}.pw2", dim, 4 * dim, 1)
        if i < 3:
            w.conv_bn(f"transitions.{i}.0", dims[i + 1], dim, 1)
            w.conv_bn(f"transitions.{i}.1", dims[i + 1], 1, 3)
    w.bn("norm", dims[3])
    w.linear("head", classes, dims[3])
    return w.state


def unireplknet(
    dims: Sequence[int],
    kernels: Sequence[Sequence[int]],
    classes: int = 1000,
    merged: bool = False,
) -> State:
    """UniRepLKNet, in training form or re-parameterised; `kernels` has one entry a block."""
    w = Writer()
    w.conv("downsample_layers.0.0", dims[0] // 2, 3, 3, bias=True)
    w.norm("downsample_layers.0.1", dims[0] // 2)
    w.conv("downsample_layers.0.3", dims[0], dims[0] // 2, 3, bias=True)
    w.norm("downsample_layers.0.4", dims[0])
    for i in (1, 2, 3):
        w.conv(f"downsample_layers.{i}.0", dims[i], dims[i - 1], 3, bias=True)
        w.norm(f"downsample_layers.{i}.1", dims[i])
    for i, dim in enumerate(dims):
        for j, side in enumerate(kernels[i]):
            at = f"stages.{i}.{j}"
            if side == 3:
                w.conv(f"{at}.dwconv", dim, 1, 3, bias=merged)
            else:
                w.conv(f"{at}.dwconv.lk_origin", dim, 1, side, bias=merged)
                if not merged:
                    w.bn(f"{at}.dwconv.origin_bn", dim)
                    for k, r in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)):
                        w.conv(f"{at}.dwconv.dil_conv_k{k}_{r}", dim, 1, k)
                        w.bn(f"{at}.dwconv.dil_bn_k{k}_{r}", dim)
            w.conv(f"{at}.se.down", dim // 4, dim, 1, bias=True)
            w.conv(f"{at}.se.up", dim, dim // 4, 1, bias=True)
            w.linear(f"{at}.pwconv1.1", 4 * dim, dim)
            w.put(f"{at}.act.1.gamma", 1, 1, 1, 4 * dim, scale=0.3)
            w.linear(f"{at}.pwconv2.0", dim, 4 * dim, bias=merged)
            if not merged:
                w.bn(f"{at}.norm", dim)
                w.put(f"{at}.act.1.beta", 1, 1, 1, 4 * dim, scale=0.3)
                w.bn(f"{at}.pwconv2.2", dim)
                w.put(f"{at}.gamma", dim, scale=0.3)
    w.norm("norm", dims[3])
    w.linear("head", classes, dims[3])
    return w.state
