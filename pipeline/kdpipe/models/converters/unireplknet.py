"""UniRepLKNet's names, in training form and re-parameterised."""

import torch

from kdpipe.models.converters.layout import Layout, Rules, State, holds, renamed

_RULES: Rules = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.origin_bn\.", ".conv_dw.branches.0.bn."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.se\.down\.", ".se.fc1."),
    (r"\.se\.up\.", ".se.fc2."),
    (r"\.pwconv1\.1\.", ".mlp.fc1."),
    (r"\.act\.1\.gamma$", ".mlp.grn.weight"),
    (r"\.act\.1\.beta$", ".mlp.grn.bias"),
    (r"\.pwconv2\.0\.", ".mlp.fc2."),
    (r"\.pwconv2\.2\.", ".norm_out."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
# (side, dilation) as their names have them, in the order of our branches.
_BRANCHES = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))


def _merged(state: State) -> bool:
    return holds(state, r"stages\.\d+\.\d+\.pwconv2\.0\.bias$")


def _rename(state: State) -> State:
    large = r"\.conv_dw\.branches\.0\." if _merged(state) else r"\.conv_dw\.branches\.0\.conv\."
    rules = [
        (rf"\.dwconv\.dil_{part}_k{side}_{dilation}\.", rf".conv_dw.branches.{i}.{part}.")
        for i, (side, dilation) in enumerate(_BRANCHES, start=1)
        for part in ("conv", "bn")
    ]
    rules.append((r"\.dwconv\.lk_origin\.", large.replace("\\", "")))
    out = renamed(state, (*rules, *_RULES))
    for key, value in list(out.items()):
        if key.endswith((".mlp.grn.weight", ".mlp.grn.bias")):
            out[key] = value.reshape(-1)
        if key.endswith(".mlp.grn.weight"):
            # Re-parameterised, GRN's bias is part of the last linear layer's.
            out.setdefault(key.removesuffix("weight") + "bias", torch.zeros_like(value.reshape(-1)))
    return out


LAYOUT = Layout(
    "unireplknet",
    lambda state: holds(state, r"stages\.\d+\.\d+\.pwconv1\.1\.weight$") and "downsample_layers.0.4.weight" in state,
    _rename,
    lambda state: {"merged": True} if _merged(state) else {},
)
