"""Objectives by name. A new one is a class in a file of its own, a line in _ALL and a section of the config."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdpipe.config import Config
from kdpipe.errors import ConfigError
from kdpipe.losses.base import Objective, TermConfig
from kdpipe.losses.bucket import BucketConfig, BucketKd
from kdpipe.losses.combine import OfTeachers, Sum, all_needs
from kdpipe.losses.dist import Dist, DistConfig
from kdpipe.losses.dkd import Dkd, DkdConfig
from kdpipe.losses.fd import FdConfig, FeatureDistillation
from kdpipe.losses.fitnets import FitNets, FitNetsConfig
from kdpipe.losses.inputs import Needs, Student, Teaching
from kdpipe.losses.logit import (
    CrossEntropy,
    CrossEntropyConfig,
    KdConfig,
    KnowledgeDistillation,
    SoftCrossEntropy,
)
from kdpipe.losses.mgd import MaskedGenerative, MgdConfig
from kdpipe.losses.nkd import Nkd, NkdConfig
from kdpipe.losses.norm import Norm, NormConfig
from kdpipe.losses.rkd import Rkd, RkdConfig
from kdpipe.losses.scalekd import CapDfm, CapDfmConfig, ScaleKd, ScaleKdConfig
from kdpipe.losses.simkd import Simkd, SimkdConfig
from kdpipe.losses.srrl import Srrl, SrrlConfig

_ALL: tuple[type[Objective], ...] = (
    CrossEntropy,
    KnowledgeDistillation,
    SoftCrossEntropy,
    BucketKd,
    Nkd,
    Dkd,
    Dist,
    FeatureDistillation,
    FitNets,
    Srrl,
    Rkd,
    MaskedGenerative,
    Simkd,
    Norm,
    CapDfm,
    ScaleKd,
)
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in _ALL}
ALIASES = {"ce": "none"}


class ObjectiveConfig(Config):
    """Which loss, and the numbers of each; those of objectives that are not named have no effect."""

    name: str = Field("kd", description="one of kdpipe objectives, or several joined by +: kd+fd")
    taps: tuple[str, ...] = Field((), description="the student's modules whose maps are taken; by default its last")
    teachers: Literal["average", "sum"] = Field(
        "average", description="of several caches: their mean log-probs, or the mean of an objective for each"
    )
    teacher_weights: tuple[float, ...] = Field((), description="one a cache; equal by default")
    none: CrossEntropyConfig = Field(default_factory=CrossEntropyConfig)
    kd: KdConfig = Field(default_factory=KdConfig)
    soft_ce: TermConfig = Field(default_factory=TermConfig)
    bucket_kd: BucketConfig = Field(default_factory=BucketConfig)
    nkd: NkdConfig = Field(default_factory=NkdConfig)
    dkd: DkdConfig = Field(default_factory=DkdConfig)
    dist: DistConfig = Field(default_factory=DistConfig)
    fd: FdConfig = Field(default_factory=FdConfig)
    fitnets: FitNetsConfig = Field(default_factory=FitNetsConfig)
    srrl: SrrlConfig = Field(default_factory=SrrlConfig)
    rkd: RkdConfig = Field(default_factory=RkdConfig)
    mgd: MgdConfig = Field(default_factory=MgdConfig)
    simkd: SimkdConfig = Field(default_factory=SimkdConfig)
    norm: NormConfig = Field(default_factory=NormConfig)
    cap_dfm: CapDfmConfig = Field(default_factory=CapDfmConfig)
    scalekd: ScaleKdConfig = Field(default_factory=ScaleKdConfig)

    @field_validator("taps", mode="before")
    @classmethod
    def _words(cls, taps: Any) -> Any:
        # Modules of a Sequential are called 0, 1, and so on, which YAML reads as numbers.
        return [str(tap) for tap in taps] if isinstance(taps, list | tuple) else taps

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        parts = [ALIASES.get(part.strip(), part.strip()) for part in name.split("+")]
        unknown = [part for part in parts if part not in OBJECTIVES]
        if unknown:
            raise ValueError(f"unknown objective {unknown[0]}; allowed: {', '.join([*OBJECTIVES, *ALIASES])}")
        if len(set(parts)) < len(parts):
            raise ValueError(f"an objective is there twice in {name}")
        return "+".join(parts)

    @model_validator(mode="after")
    def _trains_a_classifier(self) -> Self:
        if not any(objective.whole for objective in self.objectives):
            raise ValueError(f"nothing in {self.name} trains the classifier; allowed: ce+{self.name}, kd+{self.name}")
        dressing = [objective.name for objective in self.objectives if objective.dresses]
        if len(dressing) > 1:
            raise ValueError(f"{' and '.join(dressing)} both change the student; one can")
        mapped = [o.name for o in self.objectives if not o.dresses and o.needs_of(self.numbers(o.name)).maps]
        if dressing and mapped:
            raise ValueError(f"{dressing[0]} changes the student's maps, which {mapped[0]} takes; use one of them")
        return self

    @property
    def objectives(self) -> list[type[Objective]]:
        """Those named, in order."""
        return [OBJECTIVES[part] for part in self.name.split("+")]

    def numbers(self, name: str) -> Any:
        """Those of an objective."""
        return getattr(self, name.replace("-", "_"))

    @property
    def needs(self) -> Needs:
        """What they take together."""
        return all_needs(objective.needs_of(self.numbers(objective.name)) for objective in self.objectives)

    def used(self) -> dict[str, Any]:
        """What has an effect, JSON-able."""
        common = {"name": self.name, "taps": list(self.taps)} | (
            {"teachers": self.teachers, "teacher_weights": list(self.teacher_weights)}
        )
        numbers = {part: self.numbers(part).model_dump(mode="json") for part in self.name.split("+")}
        return common | numbers


def build_objective(
    config: ObjectiveConfig, student: Student | None = None, teaching: Sequence[Teaching] = ()
) -> Objective:
    """The objective that a config names.

    Args:
        config: which.
        student: the sizes of its answer; only for objectives with adapters.
        teaching: what is known of the teacher, or of each of several where `config.teachers` is sum.

    Raises:
        ConfigError: the objective can't sum over teachers.
        TrainingError: student and teacher don't go together in an objective.
    """
    if config.teachers == "sum" and len(teaching) > 1:
        dressing = [objective.name for objective in config.objectives if objective.dresses]
        if dressing:
            what = f"{dressing[0]} changes the student for one teacher: it can't sum over several"
            raise ConfigError(what, where="objective.teachers", found="sum", allowed="average")
        return OfTeachers([_of_one(config, student, one) for one in teaching], config.teacher_weights)
    return _of_one(config, student, teaching[0] if teaching else None)


def _of_one(config: ObjectiveConfig, student: Student | None, teaching: Teaching | None) -> Objective:
    student = student or Student(teaching.num_classes if teaching else 0)
    terms = [o.make(config.numbers(o.name), student, teaching) for o in config.objectives]
    plain = all(term.config.weight == 1 and term.config.schedule == ((0.0, 1.0),) for term in terms)
    return terms[0] if len(terms) == 1 and plain else Sum(terms)
