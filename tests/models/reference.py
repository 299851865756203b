"""The networks computed from a published state dict with torch.nn.functional alone, as their papers' equations say."""

import torch
from torch.nn import functional as F

from tests.models.layouts import State

Tensor = torch.Tensor


def bn(s: State, key: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, s[f"{key}.running_mean"], s[f"{key}.running_var"], s[f"{key}.weight"], s[f"{key}.bias"], eps=1e-5
    )


def depthwise(s: State, key: str, x: Tensor, dilation: int = 1) -> Tensor:
    weight = s[f"{key}.weight"]
    padding = [side // 2 * dilation for side in weight.shape[2:]]
    return F.conv2d(x, weight, s.get(f"{key}.bias"), padding=padding, dilation=dilation, groups=len(weight))


def conv_bn(s: State, key: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{key}.conv.weight"]
    return bn(s, f"{key}.bn", F.conv2d(x, weight, None, stride, weight.shape[2] // 2, groups=groups))


def last(s: State, key: str, x: Tensor) -> Tensor:
    """LayerNorm over the channels of (N, H, W, C) or (N, C)."""
    return F.layer_norm(x, x.shape[-1:], s[f"{key}.weight"], s[f"{key}.bias"], eps=1e-6)


def first(s: State, key: str, x: Tensor) -> Tensor:
    """LayerNorm over the channels of (N, C, H, W)."""
    return last(s, key, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def linear(s: State, key: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{key}.weight"], s.get(f"{key}.bias"))


def blocks(s: State, prefix: str) -> int:
    """How many blocks there are under "prefix.j."."""
    return 1 + max(int(key[len(prefix) + 1 :].split(".")[0]) for key in s if key.startswith(f"{prefix}."))


def slak_block(s: State, at: str, x: Tensor) -> Tensor:
    kernels = sorted({key.split(".")[4] for key in s if key.startswith(f"{at}.large_kernel.")})
    y = sum(bn(s, f"{at}.large_kernel.{k}.bn", depthwise(s, f"{at}.large_kernel.{k}.conv", x)) for k in kernels)
    y = last(s, f"{at}.norm", y.permute(0, 2, 3, 1))
    y = linear(s, f"{at}.pwconv2", F.gelu(linear(s, f"{at}.pwconv1", y)))
    return x + (s[f"{at}.gamma"] * y).permute(0, 3, 1, 2)


def slak(s: State, x: Tensor) -> Tensor:
    """SLaK, and the ConvNeXt distilled from it."""
    x = F.conv2d(x, s["downsample_layers.0.0.weight"], s["downsample_layers.0.0.bias"], stride=4)
    x = first(s, "downsample_layers.0.1", x)
    for i in range(4):
        if i:
            x = first(s, f"downsample_layers.{i}.0", x)
            x = F.conv2d(x, s[f"downsample_layers.{i}.1.weight"], s[f"downsample_layers.{i}.1.bias"], stride=2)
        for j in range(blocks(s, f"stages.{i}")):
            x = slak_block(s, f"stages.{i}.{j}", x)
    return linear(s, "head", last(s, "norm", x.mean((2, 3))))


def replk_block(s: State, at: str, x: Tensor) -> Tensor:
    y = F.relu(conv_bn(s, f"{at}.pw1", bn(s, f"{at}.prelkb_bn", x)))
    if f"{at}.large_kernel.lkb_reparam.weight" in s:
        z = depthwise(s, f"{at}.large_kernel.lkb_reparam", y)
    else:
        z = conv_bn(s, f"{at}.large_kernel.lkb_origin", y, groups=y.shape[1])
        if f"{at}.large_kernel.small_conv.conv.weight" in s:
            z = z + conv_bn(s, f"{at}.large_kernel.small_conv", y, groups=y.shape[1])
    return x + conv_bn(s, f"{at}.pw2", F.relu(z))


def conv_ffn(s: State, at: str, x: Tensor) -> Tensor:
    y = F.gelu(conv_bn(s, f"{at}.pw1", bn(s, f"{at}.preffn_bn", x)))
    return x + conv_bn(s, f"{at}.pw2", y)


def replknet(s: State, x: Tensor) -> Tensor:
    for i, (stride, is_depthwise) in enumerate([(2, False), (1, True), (1, False), (2, True)]):
        x = F.relu(conv_bn(s, f"stem.{i}", x, stride, x.shape[1] if is_depthwise else 1))
    for i in range(4):
        for j in range(0, blocks(s, f"stages.{i}.blocks"), 2):
            x = conv_ffn(s, f"stages.{i}.blocks.{j + 1}", replk_block(s, f"stages.{i}.blocks.{j}", x))
        if i < 3:
            x = F.relu(conv_bn(s, f"transitions.{i}.0", x))
            x = F.relu(conv_bn(s, f"transitions.{i}.1", x, 2, x.shape[1]))
    return linear(s, "head", bn(s, "norm", x).mean((2, 3)))


def unireplk_depthwise(s: State, at: str, x: Tensor) -> Tensor:
    if f"{at}.weight" in s:
        return depthwise(s, at, x)
    y = depthwise(s, f"{at}.lk_origin", x)
    if f"{at}.origin_bn.weight" in s:
        y = bn(s, f"{at}.origin_bn", y)
        for k, r in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)):
            y = y + bn(s, f"{at}.dil_bn_k{k}_{r}", depthwise(s, f"{at}.dil_conv_k{k}_{r}", x, r))
    return y


def unireplk_block(s: State, at: str, x: Tensor) -> Tensor:
    y = unireplk_depthwise(s, f"{at}.dwconv", x)
    if f"{at}.norm.weight" in s:
        y = bn(s, f"{at}.norm", y)
    squeezed = y.mean((2, 3), keepdim=True)
    squeezed = F.relu(F.conv2d(squeezed, s[f"{at}.se.down.weight"], s[f"{at}.se.down.bias"]))
    y = y * torch.sigmoid(F.conv2d(squeezed, s[f"{at}.se.up.weight"], s[f"{at}.se.up.bias"]))
    y = F.gelu(linear(s, f"{at}.pwconv1.1", y.permute(0, 2, 3, 1)))
    norms = y.pow(2).sum((1, 2), keepdim=True).sqrt()
    share = norms / (norms.mean(-1, keepdim=True) + 1e-6)
    y = y + s[f"{at}.act.1.gamma"] * share * y + s.get(f"{at}.act.1.beta", torch.zeros(1))
    y = linear(s, f"{at}.pwconv2.0", y).permute(0, 3, 1, 2)
    if f"{at}.pwconv2.2.weight" in s:
        y = bn(s, f"{at}.pwconv2.2", y) * s[f"{at}.gamma"].reshape(1, -1, 1, 1)
    return x + y


def unireplknet(s: State, x: Tensor) -> Tensor:
    def half(key: str, x: Tensor) -> Tensor:
        return F.conv2d(x, s[f"{key}.weight"], s[f"{key}.bias"], stride=2, padding=1)

    x = F.gelu(first(s, "downsample_layers.0.1", half("downsample_layers.0.0", x)))
    x = first(s, "downsample_layers.0.4", half("downsample_layers.0.3", x))
    for i in range(4):
        if i:
            x = first(s, f"downsample_layers.{i}.1", half(f"downsample_layers.{i}.0", x))
        for j in range(blocks(s, f"stages.{i}")):
            x = unireplk_block(s, f"stages.{i}.{j}", x)
    return linear(s, "head", last(s, "norm", x.mean((2, 3))))
