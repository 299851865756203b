"""NORM: the student's map widened to N times the teacher's, each of the N compared with the teacher's."""

from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from kdpipe.errors import TargetsError, TrainingError
from kdpipe.losses.align import map_shapes, missing, same_grid
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.losses.logit import cross_entropy, kd
from kdpipe.models import ModelSpec
from kdpipe.models.wrappers.logits import standardised
from kdpipe.models.wrappers.norm import EXPANDED, NormStudent
from kdpipe.targets import Labels, Targets

# A channel that varied less than this share of the mean deviation has none worth the name: it is divided by the mean.
_LEAST = 0.01


def norm(expanded: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """sum_i of the mean over channels and positions of (E_i - M_t)^2, for each row: (n,).

    Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching" (2023), section 3; the sum over
    the N slices is that of its code.

    Args:
        expanded: E (n, N * D, h, w), slice i being channels i * D to (i + 1) * D.
        teacher: M_t (n, D, h, w).
    """
    slices = float32(expanded).unflatten(1, (-1, teacher.shape[1]))  # (n, N, D, h, w)
    return (slices - float32(teacher)[:, None]).square().flatten(2).mean(dim=2).sum(dim=1)


class NormConfig(TermConfig):
    """Numbers of `norm`. ResNet-34 to ResNet-18: as they are; ResNet-50 to MobileNetV1: ce 0.125."""

    ce: float = Field(1.0, ge=0, description="weight of the cross entropy: the paper's code's r")
    kd: float = Field(0.0, ge=0, description="weight of KD, which needs dense targets: a")
    matching: float = Field(1.0, ge=0, description="weight of the maps' distance: b")
    matching_schedule: tuple[tuple[float, float], ...] = Field(
        ((0.0, 0.1), (0.05, 0.5), (0.15, 0.9), (0.6, 0.5), (0.8, 0.1)),
        description="factors of that weight from shares of the run on: w",
    )
    temperature: float = Field(4.0, gt=0, description="T of KD")
    expansion: int = Field(8, ge=1, description="how many times the teacher's map is matched: N")
    logit_scale: float | None = Field(
        2.5, gt=0, description="logits of both sides are standardised, times this; null: as they are"
    )
    standardise_map: Literal["auto"] | bool = Field(
        "auto", description="the teacher's map per channel; auto: unless no channel's mean is negative (ResNets)"
    )

    @model_validator(mode="after")
    def _trains_a_classifier(self) -> Self:
        if not (self.ce or self.kd):
            raise ValueError("ce and kd are both 0: nothing trains the classifier")
        assert self.matched
        return self

    @property
    def matched(self) -> TermConfig:
        """The maps' distance as a term of its own."""
        return TermConfig(weight=self.matching, schedule=self.matching_schedule)


class Norm(Loss):
    """ce * CE + kd * KD + matching * w(share of the run) * `norm`. Parts: `ce`, `kd`, `norm`, those with a weight.

    The student is wrapped as a NormStudent and undressed to its plain self, merged. CE and KD see logits that
    are `standardised`; so must whoever wants probabilities of the kept student. Of the two maps the larger one is
    max-pooled to the other's grid. The squared error is not free of scale: the maps of ConvNeXt, SLaK or Swin, whose
    channels differ by orders of magnitude, are standardised per channel with the statistics in the cache; those of
    ResNets, behind a ReLU and the only ones of the paper, are not.
    """

    name, paper = "norm", "Liu et al. 2023, NORM: N-to-One Representation Matching"
    Config = NormConfig
    wraps_student = True
    config: NormConfig
    mean: torch.Tensor | None
    std: torch.Tensor | None

    def __init__(self, config: NormConfig, mean: torch.Tensor | None, std: torch.Tensor | None) -> None:
        """With the statistics, float (D,), to standardise the map by; None to take it as it is."""
        super().__init__(config)
        # The cache has them: no part of a checkpoint.
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        learns = config.kd > 0
        return Requirements(labels=config.ce > 0, logits=learns, dense=learns, map=True, maps=1)

    @classmethod
    def make(cls, config: Any, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """See Loss."""
        (width, *_), (wide, *_) = map_shapes(cls.name, student, info)
        if width != config.expansion * wide:
            raise TrainingError(
                "the student isn't wrapped for this teacher",
                where=cls.name,
                found=width,
                allowed=config.expansion * wide,
            )
        assert info is not None
        return cls(config, *_statistics(config, info))

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, info: TeacherInfo | None) -> nn.Module:
        """See Loss."""
        if info is None or info.map is None:
            raise missing(cls.name, "map")
        return NormStudent(model, info.map[0], config.expansion)

    @classmethod
    def unwrap(cls, built: ModelSpec) -> ModelSpec:
        """See Loss."""
        assert isinstance(built.module, NormStudent)
        return replace(built, module=built.module.merged())

    @classmethod
    def taps(cls, config: Any) -> tuple[str, ...]:
        """See Loss."""
        return (EXPANDED,)

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        c, told = self.config, require_targets(self.name, self.requirements, targets)
        assert told.map is not None
        teacher, scale, parts = told.map, c.logit_scale, {}
        with torch.autocast(output.logits.device.type, enabled=False):
            if self.mean is not None and self.std is not None:
                teacher = (teacher - self.mean[:, None, None]) / self.std[:, None, None]
            expanded, teacher = same_grid(float32(output.maps[-1]), teacher, "max")
            parts["norm"] = context.over_rows(norm(expanded, teacher).sum())
            logits = output.logits if scale is None else standardised(output.logits, scale)
            if c.ce:
                parts["ce"] = cross_entropy(logits, labels, context)
            if c.kd:
                assert told.log_probs is not None
                says = told.log_probs if scale is None else standardised(told.log_probs, scale)
                parts["kd"] = context.over_rows(kd(logits, says, c.temperature).sum())
        loss = c.matched.factor(context) * parts["norm"]
        for name, weight in (("ce", c.ce), ("kd", c.kd)):
            loss = loss + weight * parts[name] if weight else loss
        return {"loss": loss, **parts}


def _statistics(config: NormConfig, info: TeacherInfo) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if config.standardise_map is False:
        return None, None
    if info.mean is None or info.std is None:
        raise TargetsError(
            "the cache has no statistics of the teacher's map",
            where="loss.norm.standardise_map",
            found=config.standardise_map,
            do="Cache the map anew, or set loss.norm.standardise_map=false",
        )
    # What comes out of a ReLU has no negative mean in any channel; of other maps some of hundreds have one.
    if config.standardise_map == "auto" and bool((info.mean >= 0).all()):
        return None, None
    usual = info.std.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return info.mean.clone(), torch.where(info.std < _LEAST * usual, usual, info.std)
