"""Objectives: losses of a student, each declaring what it needs of labels and cached targets."""

from pipeline.objectives.base import Needs, Objective, Reduction
from pipeline.objectives.build import OBJECTIVES, ObjectiveConfig, build_objective

__all__ = ["OBJECTIVES", "Needs", "Objective", "ObjectiveConfig", "Reduction", "build_objective"]
