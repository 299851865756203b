"""RepLKNet's names, in training form and with the small kernels merged into the large ones."""

import re
from typing import Any

from kdpipe.models.converters.layout import Layout, Rules, State, holds, renamed

_MERGED = r"stages\.\d+\.blocks\.\d+\.large_kernel\.lkb_reparam\."
_RULES: Rules = (
    (r"\.(prelkb_bn|preffn_bn)\.", ".norm."),
    (r"\.large_kernel\.(lkb_origin|lkb_reparam)\.", ".conv_dw.branches.0."),
    (r"\.large_kernel\.small_conv\.", ".conv_dw.branches.1."),
    (r"^norm\.", "norm_pre."),
    (r"^head\.", "head.fc."),
)


def _rename(state: State) -> State:
    # Their transition comes after stage n, our downsampling before stage n + 1.
    return renamed(
        {
            re.sub(r"^transitions\.(\d+)\.", lambda found: f"stages.{int(found[1]) + 1}.downsample.", key): value
            for key, value in state.items()
        },
        _RULES,
    )


def _implies(state: State) -> dict[str, Any]:
    return {"merged": True} if holds(state, _MERGED) else {}


LAYOUT = Layout(
    "replknet",
    lambda state: "stem.0.conv.weight" in state and holds(state, r"stages\.\d+\.blocks\.\d+\.large_kernel\."),
    _rename,
    _implies,
)
