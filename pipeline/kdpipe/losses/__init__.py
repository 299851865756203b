"""Losses: losses of a student, each declaring what it needs of labels and cached targets."""

from kdpipe.losses.base import Loss, TermConfig
from kdpipe.losses.build import ALIASES, LOSSES, LossConfig, build_loss
from kdpipe.losses.combine import average
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo

__all__ = [
    "ALIASES",
    "LOSSES",
    "Context",
    "FeatureShapes",
    "Loss",
    "LossConfig",
    "Requirements",
    "StudentOutput",
    "TeacherInfo",
    "TermConfig",
    "average",
    "build_loss",
]
