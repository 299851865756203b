"""Losses by name. A new one is a class in a file of its own, a line in _ALL and a section of the config."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdpipe.config import Config
from kdpipe.errors import ConfigError
from kdpipe.losses.base import Loss, TermConfig
from kdpipe.losses.bucket import BucketConfig, BucketKd
from kdpipe.losses.combine import Sum, SumOverTeachers, all_requirements
from kdpipe.losses.dist import Dist, DistConfig
from kdpipe.losses.dkd import Dkd, DkdConfig
from kdpipe.losses.fd import FdConfig, FeatureDistillation
from kdpipe.losses.fitnets import FitNets, FitNetsConfig
from kdpipe.losses.inputs import FeatureShapes, Requirements, TeacherInfo
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

_ALL: tuple[type[Loss], ...] = (
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
LOSSES: dict[str, type[Loss]] = {loss.name: loss for loss in _ALL}
ALIASES = {"ce": "none"}


class LossConfig(Config):
    """Which loss, and the numbers of each; those of losses that are not named have no effect."""

    name: str = Field("kd", description="one of kdpipe losses, or several joined by +: kd+fd")
    taps: tuple[str, ...] = Field((), description="the student's modules whose maps are taken; by default its last")
    teachers: Literal["average", "sum"] = Field(
        "average", description="of several caches: their mean log-probs, or the mean of a loss for each"
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
        unknown = [part for part in parts if part not in LOSSES]
        if unknown:
            raise ValueError(f"unknown loss {unknown[0]}; allowed: {', '.join([*LOSSES, *ALIASES])}")
        if len(set(parts)) < len(parts):
            raise ValueError(f"a loss is there twice in {name}")
        return "+".join(parts)

    @model_validator(mode="after")
    def _trains_a_classifier(self) -> Self:
        if not any(loss.trains_classifier for loss in self.losses):
            raise ValueError(f"nothing in {self.name} trains the classifier; allowed: ce+{self.name}, kd+{self.name}")
        wrapping = [loss.name for loss in self.losses if loss.wraps_student]
        if len(wrapping) > 1:
            raise ValueError(f"{' and '.join(wrapping)} both change the student; one can")
        mapped = [
            o.name for o in self.losses if not o.wraps_student and o.requirements_of(self.hyperparameters(o.name)).maps
        ]
        if wrapping and mapped:
            raise ValueError(f"{wrapping[0]} changes the student's maps, which {mapped[0]} takes; use one of them")
        return self

    @property
    def losses(self) -> list[type[Loss]]:
        """Those named, in order."""
        return [LOSSES[part] for part in self.name.split("+")]

    def hyperparameters(self, name: str) -> Any:
        """Those of a loss."""
        return getattr(self, name.replace("-", "_"))

    @property
    def requirements(self) -> Requirements:
        """What they take together."""
        return all_requirements(loss.requirements_of(self.hyperparameters(loss.name)) for loss in self.losses)

    def used(self) -> dict[str, Any]:
        """What has an effect, JSON-able."""
        common = {"name": self.name, "taps": list(self.taps)} | (
            {"teachers": self.teachers, "teacher_weights": list(self.teacher_weights)}
        )
        numbers = {part: self.hyperparameters(part).model_dump(mode="json") for part in self.name.split("+")}
        return common | numbers


def build_loss(config: LossConfig, student: FeatureShapes | None = None, info: Sequence[TeacherInfo] = ()) -> Loss:
    """The loss that a config names.

    Args:
        config: which.
        student: the sizes of its output; only for losses with adapters.
        info: what is known of the teacher, or of each of several where `config.teachers` is sum.

    Raises:
        ConfigError: the loss can't sum over teachers.
        TrainingError: student and teacher don't go together in a loss.
    """
    if config.teachers == "sum" and len(info) > 1:
        wrapping = [loss.name for loss in config.losses if loss.wraps_student]
        if wrapping:
            what = f"{wrapping[0]} changes the student for one teacher: it can't sum over several"
            raise ConfigError(what, where="loss.teachers", found="sum", allowed="average")
        return SumOverTeachers([_of_one(config, student, one) for one in info], config.teacher_weights)
    return _of_one(config, student, info[0] if info else None)


def _of_one(config: LossConfig, student: FeatureShapes | None, info: TeacherInfo | None) -> Loss:
    student = student or FeatureShapes(info.num_classes if info else 0)
    terms = [o.make(config.hyperparameters(o.name), student, info) for o in config.losses]
    plain = all(term.config.weight == 1 and term.config.schedule == ((0.0, 1.0),) for term in terms)
    return terms[0] if len(terms) == 1 and plain else Sum(terms)
