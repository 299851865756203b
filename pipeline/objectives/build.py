"""Objectives by name. A new one is a class in its family's file and a line in OBJECTIVES."""

from collections.abc import Callable

from pydantic import Field, field_validator, model_validator

from pipeline.config import Config
from pipeline.objectives.base import Objective
from pipeline.objectives.logit import CrossEntropy, KnowledgeDistillation, SoftCrossEntropy

OBJECTIVES: dict[str, Callable[["ObjectiveConfig"], Objective]] = {
    "none": lambda c: CrossEntropy(c.label_smoothing),
    "kd": lambda c: KnowledgeDistillation(c.temperature, c.alpha, c.label_smoothing),
    "soft-ce": lambda c: SoftCrossEntropy(),
}


class ObjectiveConfig(Config):
    """Which loss, and its numbers; each objective's class says which of them it takes."""

    name: str = Field("kd", description="; ".join(OBJECTIVES))
    temperature: float = Field(1.0, gt=0, description="T of kd; other than 1 needs dense targets")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of KD; cross entropy gets 1 - alpha")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross entropy against labels")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTIVES:
            raise ValueError(f"unknown objective {name}; allowed: {', '.join(OBJECTIVES)}")
        return name

    @model_validator(mode="after")
    def _softened(self) -> "ObjectiveConfig":
        if self.name == "soft-ce" and self.temperature != 1:
            raise ValueError(f"soft-ce has temperature 1, found {self.temperature}; kd takes others")
        return self


def build_objective(config: ObjectiveConfig) -> Objective:
    """The objective that a config names."""
    return OBJECTIVES[config.name](config)
