"""Objectives: losses of a student, each declaring what it needs of labels and cached targets."""

from pipeline.objectives.base import Objective, TermConfig
from pipeline.objectives.build import ALIASES, OBJECTIVES, ObjectiveConfig, build_objective
from pipeline.objectives.combine import average
from pipeline.objectives.inputs import Answer, Context, Needs, Student, Teaching

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
