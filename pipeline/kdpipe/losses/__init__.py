"""Objectives: losses of a student, each declaring what it needs of labels and cached targets."""

from kdpipe.losses.base import Objective, TermConfig
from kdpipe.losses.build import ALIASES, OBJECTIVES, ObjectiveConfig, build_objective
from kdpipe.losses.combine import average
from kdpipe.losses.inputs import Answer, Context, Needs, Student, Teaching

__all__ = [
    "ALIASES",
    "OBJECTIVES",
    "Answer",
    "Context",
    "Needs",
    "Objective",
    "ObjectiveConfig",
    "Student",
    "Teaching",
    "TermConfig",
    "average",
    "build_objective",
]
