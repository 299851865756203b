"""Hyperparameters and requirements of every loss, without torch and timm, so that help and listings are quick."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from kdpipe.config import Config

Schedule = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Requirements:
    """What a loss takes from labels, teacher and student.

    Attributes:
        labels: it has a term against the ground truth.
        logits: the teacher's; the top k suffice.
        dense: the teacher's logits of all classes.
        pooled, map: the teacher's features.
        head, tail: the teacher's classifier and its last stage, with their weights.
        maps: number of the student's feature maps, counted backwards from the last one.
        student_pooled: the input of the student's classifier.
    """

    labels: bool = False
    logits: bool = False
    dense: bool = False
    pooled: bool = False
    map: bool = False
    head: bool = False
    tail: bool = False
    maps: int = 0
    student_pooled: bool = False

    @property
    def targets(self) -> bool:
        """Whether it needs a teacher."""
        return any((self.logits, self.dense, self.features))

    @property
    def features(self) -> bool:
        """Whether it takes more than logits from the teacher."""
        return any((self.pooled, self.map, self.head, self.tail))

    def __or__(self, other: "Requirements") -> "Requirements":
        """What both take."""
        mine, theirs = vars(self), vars(other)
        return Requirements(**{name: max(value, theirs[name]) for name, value in mine.items()})


class TermConfig(Config):
    """Base of every loss's config: what they have in common when several are summed.

    A subclass adds the loss's hyperparameters, as fields with bounds and descriptions, and sets `requires`.

    Attributes:
        paper: the source, one line.
        trains_classifier: whether it trains the student's classifier, so that it can be used alone.
        wraps_student: whether the loss replaces the student by a wrapped one, see `Loss.wrap`.
        requires: what it takes whatever its hyperparameters are.
    """

    paper: ClassVar[str] = ""
    trains_classifier: ClassVar[bool] = True
    wraps_student: ClassVar[bool] = False
    requires: ClassVar[Requirements] = Requirements()

    weight: float = Field(1.0, ge=0, description="Weight of the loss where several are summed.")
    schedule: Schedule = Field(
        ((0.0, 1.0),), description="Factors of the weight: [[0, 0.1], [0.05, 1]] is 0.1, and 1 from 5 % of the run on."
    )

    @field_validator("schedule")
    @classmethod
    def _from_the_start(cls, steps: Schedule) -> Schedule:
        starts = [start for start, _ in steps]
        if not steps or starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= 1:
            raise ValueError(f"a schedule begins at 0 and rises below 1, found {starts}")
        return steps

    @property
    def requirements(self) -> Requirements:
        """What the loss takes with these hyperparameters: `requires`, unless a subclass computes it from them."""
        return self.requires

    def factor(self, progress: float) -> float:
        """Weight times the schedule's factor at this share of the run, 0 to 1."""
        return self.weight * [factor for start, factor in self.schedule if start <= progress + 1e-9][-1]


class CrossEntropyConfig(TermConfig):
    """Hyperparameters of `none`."""

    paper = "cross entropy against the labels; no teacher"
    requires = Requirements(labels=True)
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross entropy.")


class KdConfig(CrossEntropyConfig):
    """Hyperparameters of `kd`. On CIFAR papers use temperature 4 and alpha 0.9."""

    paper = "Hinton et al. 2015, Distilling the Knowledge in a Neural Network"
    temperature: float = Field(1.0, gt=0, description="Temperature; other than 1 needs dense targets.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of KD; cross entropy gets 1 - alpha.")

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        return Requirements(labels=self.alpha < 1, logits=True, dense=self.temperature != 1)


class SoftCrossEntropyConfig(TermConfig):
    """Hyperparameters of `soft-ce`."""

    paper = "Shen and Xing 2022, FKD; Wu et al. 2022, TinyViT"
    requires = Requirements(logits=True)


class BucketConfig(CrossEntropyConfig):
    """Hyperparameters of `bucket-kd`."""

    paper = "KD with the classes beyond the top k as one; no paper"
    k: int = Field(16, ge=1, description="Classes to take of dense targets; of top-k targets those that are cached.")
    alpha: float = Field(0.5, ge=0, le=1, description="Weight of the KL; cross entropy gets 1 - alpha.")

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        return Requirements(labels=self.alpha < 1, logits=True)


class NkdConfig(CrossEntropyConfig):
    """Hyperparameters of `nkd`; the form sets the defaults of the others."""

    paper = "Yang et al. 2023, From Knowledge Distillation to Self-Knowledge Distillation"
    form: Literal["paper", "large-kernel"] = Field(
        "paper", description="large-kernel: as the large-kernel paper ran it, with gamma 1 and no cross entropy."
    )
    gamma: float = Field(1.5, ge=0, description="Weight of the other classes; 1 in the large-kernel form.")
    temperature: float = Field(
        1.0, gt=0, description="Temperature of the other classes; other than 1 needs dense targets."
    )
    ce: bool = Field(True, description="Add the cross entropy against labels; not in the large-kernel form.")

    @model_validator(mode="before")
    @classmethod
    def _of_the_form(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("form") == "large-kernel":
            return {"gamma": 1.0, "ce": False, **data}
        return data

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        return Requirements(labels=True, logits=True, dense=self.temperature != 1)


class DkdConfig(CrossEntropyConfig):
    """Hyperparameters of `dkd`: those of ImageNet. On CIFAR: alpha 1, beta 8, temperature 4, warmup 20."""

    paper = "Zhao et al. 2022, Decoupled Knowledge Distillation"
    alpha: float = Field(1.0, ge=0, description="Weight of the label's class against all others.")
    beta: float = Field(0.5, ge=0, description="Weight of the other classes; 2 from ResNet-50 to MobileNetV1; CIFAR 8.")
    temperature: float = Field(1.0, gt=0, description="Temperature; other than 1 needs dense targets; CIFAR 4.")
    warmup: float = Field(0.0, ge=0, description="Epochs over which both weights rise from 0; CIFAR 20.")

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        return Requirements(labels=True, logits=True, dense=self.temperature != 1)


class DistConfig(CrossEntropyConfig):
    """Hyperparameters of `dist`."""

    paper = "Huang et al. 2022, Knowledge Distillation from A Stronger Teacher"
    requires = Requirements(labels=True, logits=True, dense=True)
    tau: float = Field(1.0, gt=0, description="Temperature.")


class MapConfig(TermConfig):
    """Base of the configs of losses between the final maps of student and teacher."""

    trains_classifier = False
    requires = Requirements(map=True, maps=1)


class FdConfig(MapConfig):
    """Hyperparameters of `fd`. The weight is the large-kernel paper's, for the form `paper` beside CE, KD or NKD."""

    paper = "Wei et al. 2022, Feature Distillation; Huang et al. 2023, Large Kernels as Teachers"
    weight: float = Field(3e-5, ge=0, description="Weight of the loss where several are summed.")
    form: Literal["paper", "whitened"] = Field(
        "paper", description="paper: the teacher's map as it is; whitened: each position's vector normalised."
    )


class FitNetsConfig(MapConfig):
    """Hyperparameters of `fitnets`."""

    paper = "Romero et al. 2015, FitNets: Hints for Thin Deep Nets"
    weight: float = Field(100.0, ge=0, description="Weight of the loss where several are summed.")


class SrrlConfig(TermConfig):
    """Hyperparameters of `srrl`."""

    paper = "Yang et al. 2021, Softmax Regression Representation Learning"
    trains_classifier = False
    requires = Requirements(pooled=True, head=True, maps=1)
    regression: float = Field(5.0, ge=0, description="Weight of the error between logits against that of features.")
    relu: bool = Field(False, description="The connector ends in a ReLU: the paper's, for ResNets as teachers.")


class RkdConfig(TermConfig):
    """Hyperparameters of `rkd`."""

    paper = "Park et al. 2019, Relational Knowledge Distillation"
    trains_classifier = False
    requires = Requirements(pooled=True, student_pooled=True)
    distance: float = Field(25.0, ge=0, description="Weight of the distances.")
    angle: float = Field(50.0, ge=0, description="Weight of the angles.")


class MgdConfig(MapConfig):
    """Hyperparameters of `mgd`, those of the paper's classification."""

    paper = "Yang et al. 2022, Masked Generative Distillation"
    weight: float = Field(7e-5, ge=0, description="Weight of the loss where several are summed: the paper's alpha.")
    mask: float = Field(0.15, ge=0, lt=1, description="Share of channels that are masked: the paper's lambda.")


class SimkdConfig(TermConfig):
    """Hyperparameters of `simkd`."""

    paper = "Chen et al. 2022, Knowledge Distillation with the Reused Teacher Classifier"
    wraps_student = True
    bottleneck: int = Field(2, ge=1, description="The projector's inner width is the teacher's divided by it.")
    relu: bool = Field(False, description="The projector ends in a ReLU: the paper's, for ResNets as teachers.")
    feature: Literal["pooled", "map"] = Field(
        "pooled",
        description="What is compared: the mean over positions, or each position, which only fits teachers whose "
        "classifier takes the plain mean of the final map.",
    )

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        by_map = self.feature == "map"
        return Requirements(pooled=True, head=True, map=by_map, maps=int(by_map), student_pooled=not by_map)


class NormConfig(TermConfig):
    """Hyperparameters of `norm`. ResNet-34 to ResNet-18: as they are; ResNet-50 to MobileNetV1: ce 0.125."""

    paper = "Liu et al. 2023, NORM: N-to-One Representation Matching"
    wraps_student = True
    ce: float = Field(1.0, ge=0, description="Weight of the cross entropy: the paper's code's r.")
    kd: float = Field(0.0, ge=0, description="Weight of KD, which needs dense targets: a.")
    matching: float = Field(1.0, ge=0, description="Weight of the distance between maps: b.")
    matching_schedule: Schedule = Field(
        ((0.0, 0.1), (0.05, 0.5), (0.15, 0.9), (0.6, 0.5), (0.8, 0.1)),
        description="Factors of that weight, each from a share of the run on: w.",
    )
    temperature: float = Field(4.0, gt=0, description="Temperature of KD.")
    expansion: int = Field(8, ge=1, description="How many times the teacher's map is matched: N.")
    logit_scale: float | None = Field(
        2.5, gt=0, description="Logits of both sides are standardised, times this; null: as they are."
    )
    standardise_map: Literal["auto"] | bool = Field(
        "auto", description="Standardise the teacher's map per channel; auto: if a channel's mean is negative."
    )

    @model_validator(mode="after")
    def _trains_a_classifier(self) -> Self:
        if not (self.ce or self.kd):
            raise ValueError("ce and kd are both 0: nothing trains the classifier")
        assert self.matched
        return self

    @property
    def matched(self) -> TermConfig:
        """Weight and schedule of the distance between maps."""
        return TermConfig(weight=self.matching, schedule=self.matching_schedule)

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        return Requirements(labels=self.ce > 0, logits=self.kd > 0, dense=self.kd > 0, map=True, maps=1)


class CapDfmConfig(MapConfig):
    """Hyperparameters of `cap-dfm`."""

    paper = "Fan et al. 2024, ScaleKD: Strong Vision Transformers Could Be Excellent Teachers"
    spat: float = Field(0.08, ge=0, description="Weight of L_spat.")
    freq: float = Field(0.06, ge=0, description="Weight of L_freq.")
    head_width: int = Field(
        64, ge=1, description="Channels of an attention head; 64 where they don't divide the teacher's width."
    )


class ScaleKdConfig(TermConfig):
    """Hyperparameters of `scalekd`."""

    paper = CapDfmConfig.paper
    temperature: float = Field(1.0, gt=0, description="Temperature of kd; other than 1 needs dense targets.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross entropy against labels.")
    ce: float = Field(0.5, ge=0, description="Weight of the cross entropy against labels.")
    kd: float = Field(0.5, ge=0, description="Weight of the cross entropy against the teacher.")
    spat_tail: float = Field(0.08, ge=0, description="Weight of L_spat behind the teacher's tail.")
    freq_tail: float = Field(0.06, ge=0, description="Weight of L_freq behind the teacher's tail.")
    spat: float = Field(0.08, ge=0, description="Weight of L_spat of the student's final map.")
    freq: float = Field(0.06, ge=0, description="Weight of L_freq of the student's final map.")
    head_widths: tuple[int, int] = Field(
        (48, 64),
        description="Channels of an attention head before and behind the tail; 64 where they don't divide the width.",
    )

    @model_validator(mode="after")
    def _trains_the_classifier(self) -> Self:
        if self.ce + self.kd == 0:
            raise ValueError("scalekd with ce 0 and kd 0 leaves the classifier untrained; use kd+cap-dfm for features")
        if min(self.head_widths) < 1:
            raise ValueError(f"head_widths are at least 1, found {self.head_widths}")
        return self

    @property
    def requirements(self) -> Requirements:
        """See TermConfig."""
        soft = self.kd > 0
        dense = soft and self.temperature != 1
        return Requirements(labels=self.ce > 0, logits=soft, dense=dense, map=True, tail=True, maps=2)
