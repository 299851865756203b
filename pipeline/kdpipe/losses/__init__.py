"""Objectives: losses of a student, each declaring what it needs of labels and cached targets."""

from kdpipe.losses.base import Loss, TermConfig
from kdpipe.losses.build import ALIASES, OBJECTIVES, LossConfig, build_objective
from kdpipe.losses.combine import average
from kdpipe.losses.inputs import StudentOutput, Context, Requirements, FeatureShapes, TeacherInfo

__all__ = [
    "ALIASES",
    "OBJECTIVES",
    "StudentOutput",
    "Context",
    "Requirements",
    "Loss",
    "LossConfig",
    "FeatureShapes",
    "TeacherInfo",
    "TermConfig",
    "average",
    "build_objective",
]
