"""Objectives: losses of a student, each declaring what it needs of labels and cached targets."""

from pipeline.objectives.base import Answer, Context, Needs, Objective, Student, Teaching, TermConfig
from pipeline.objectives.build import ALIASES, OBJECTIVES, ObjectiveConfig, build_objective
from pipeline.objectives.combine import average

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
