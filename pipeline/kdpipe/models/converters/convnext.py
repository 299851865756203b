"""ConvNeXt as its authors name it, and the one distilled from SLaK, which has a BatchNorm after each depthwise kernel.

Both go into timm's own ConvNeXt: the BatchNorm is folded into the kernel, exactly.
"""

import re

import torch

from kdpipe.models.converters.layout import Layout, Rules, State, holds, renamed

# SLaK is named likewise.
RULES: Rules = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"^head\.", "head.fc."),
    (r"^norm\.", "head.norm."),
)
_EPS = 1e-5  # PyTorch's BatchNorm, which the repository uses as it is


def _recognises(state: State) -> bool:
    kernels = holds(state, r"stages\.0\.0\.(dwconv\.weight|large_kernel\.lkb_origin\.conv\.weight)")
    return kernels and "downsample_layers.0.0.weight" in state and not holds(state, r".*\.(small_conv|grn)\.")


def _rename(state: State) -> State:
    return renamed(_fold(state), (*RULES, (r"\.dwconv\.", ".conv_dw.")))


def _fold(state: State) -> State:
    out: State = {}
    for key, value in state.items():
        found = re.fullmatch(r"(stages\.\d+\.\d+)\.large_kernel\.lkb_origin\.(conv\.weight|bn\.\w+)", key)
        if found is None:
            out[key] = value
        elif found[2] == "conv.weight":
            bn = key.removesuffix("conv.weight") + "bn."
            mean, var, gamma, beta = (
                state[bn + name].double() for name in ("running_mean", "running_var", "weight", "bias")
            )
            scale = gamma / torch.sqrt(var + _EPS)
            out[f"{found[1]}.dwconv.weight"] = (value.double() * scale.reshape(-1, 1, 1, 1)).to(value.dtype)
            out[f"{found[1]}.dwconv.bias"] = (beta - mean * scale).to(value.dtype)
    return out


LAYOUT = Layout("convnext", _recognises, _rename, lambda state: {})
