"""SLaK's names. "LoRA" there are the stripes (early versions: Decom), nothing to do with language models."""

from typing import Any

from kdpipe.models.converters.convnext import RULES
from kdpipe.models.converters.layout import Layout, Rules, State, holds, renamed

_STRIPES = r"stages\.\d+\.\d+\.large_kernel\.(LoRA|Decom)1\."
# In the order of our branches: the small square comes after one square, or after two stripes.
_DECOMPOSED: Rules = (
    (r"\.large_kernel\.(?:LoRA|Decom)1\.", ".conv_dw.branches.0."),
    (r"\.large_kernel\.(?:LoRA|Decom)2\.", ".conv_dw.branches.1."),
    (r"\.large_kernel\.small_conv\.", ".conv_dw.branches.2."),
)
_SQUARE: Rules = (
    (r"\.large_kernel\.lkb_origin\.", ".conv_dw.branches.0."),
    (r"\.large_kernel\.small_conv\.", ".conv_dw.branches.1."),
)
_DEFAULTS = {"kernel_sizes": [51, 49, 47, 13], "small_kernel": 5, "decomposed": True}


def _recognises(state: State) -> bool:
    square = holds(state, r"stages\.\d+\.\d+\.large_kernel\.small_conv\.")
    return "downsample_layers.0.0.weight" in state and (square or holds(state, _STRIPES))


def _rename(state: State) -> State:
    return renamed(state, (*(_DECOMPOSED if holds(state, _STRIPES) else _SQUARE), *RULES))


def _implies(state: State) -> dict[str, Any]:
    """The paper also has kernels of 31 and 61, under the same names."""
    kernels = [
        tensor.shape[2]
        for i in range(4)
        for branch in ("LoRA1", "Decom1", "lkb_origin")
        if (tensor := state.get(f"stages.{i}.0.large_kernel.{branch}.conv.weight")) is not None
    ]
    small = [t.shape[2] for k, t in state.items() if k.endswith(".small_conv.conv.weight")]
    found = {
        "kernel_sizes": kernels,
        "small_kernel": small[0] if small else _DEFAULTS["small_kernel"],
        "decomposed": holds(state, _STRIPES),
    }
    return {key: value for key, value in found.items() if value != _DEFAULTS[key]}


LAYOUT = Layout("slak", _recognises, _rename, _implies)
