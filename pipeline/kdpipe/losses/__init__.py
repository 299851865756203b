"""Losses of a student; each declares what it takes of labels and cached targets. Torch is imported when needed."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports
from kdpipe.losses.config import Requirements, TermConfig
from kdpipe.losses.registry import ALIASES, LOSSES, LossConfig, LossEntry, find_loss, register_loss

if TYPE_CHECKING:
    from kdpipe.losses.base import Loss, float32, given
    from kdpipe.losses.combine import average, build_loss
    from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
else:
    __getattr__ = exports(
        __name__,
        {
            "base": "Loss float32 given",
            "combine": "average build_loss",
            "inputs": "Context FeatureShapes StudentOutput TeacherInfo",
        },
    )

__all__ = [
    "ALIASES",
    "LOSSES",
    "Context",
    "FeatureShapes",
    "Loss",
    "LossConfig",
    "LossEntry",
    "Requirements",
    "StudentOutput",
    "TeacherInfo",
    "TermConfig",
    "average",
    "build_loss",
    "find_loss",
    "float32",
    "given",
    "register_loss",
]
