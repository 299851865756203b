"""NORM: the student's map widened to N times the teacher's, each of the N compared with the teacher's."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdpipe.errors import TargetsError, TrainingError
from kdpipe.losses.align import same_grid
from kdpipe.losses.base import Loss, Parts, float32, given, of_teacher
from kdpipe.losses.config import NormConfig
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.losses.logit import cross_entropy, kd
from kdpipe.models import ModelSpec
from kdpipe.models.wrappers.logits import standardised
from kdpipe.models.wrappers.norm import EXPANDED, NormStudent
from kdpipe.targets import Labels, Targets

# A channel that varies less than this share of the mean deviation is all but constant: it is divided by the mean.
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


class Norm(Loss):
    """ce * CE + kd * KD + matching * w(share of the run) * `norm`. Parts: `ce`, `kd`, `norm`, those with a weight.

    The student is wrapped as a NormStudent and unwrapped and merged at the end. CE and KD see logits that
    are `standardised`; do so too for probabilities of the kept student. Of the two maps the larger one is
    max-pooled to the other's grid. The squared error is not free of scale: the maps of ConvNeXt, SLaK or Swin, whose
    channels differ by orders of magnitude, are standardised per channel with the statistics in the cache; those of
    ResNets, behind a ReLU and the only ones of the paper, are not.
    """

    name, Config = "norm", NormConfig
    config: NormConfig
    mean: torch.Tensor | None
    std: torch.Tensor | None

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        width, wide = given(student).maps[-1][0], of_teacher(self.name, teacher, "map")[0]
        if width != config.expansion * wide:
            what, allowed = "the student isn't wrapped for this teacher", config.expansion * wide
            raise TrainingError(what, where=self.name, found=width, allowed=allowed)
        # Statistics, float (D,), by which the map is standardised; None to take it as it is. The cache has them: no
        # part of a checkpoint.
        for name, value in zip(("mean", "std"), _statistics(config, given(teacher)), strict=True):
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, teacher: TeacherInfo | None) -> nn.Module:
        """See Loss."""
        return NormStudent(model, of_teacher(cls.name, teacher, "map")[0], config.expansion)

    @classmethod
    def unwrap(cls, built: ModelSpec) -> ModelSpec:
        """See Loss."""
        assert isinstance(built.module, NormStudent)
        return replace(built, module=built.module.merged())

    @classmethod
    def layers(cls, config: Any) -> tuple[str, ...]:
        """See Loss."""
        return (EXPANDED,)

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c, teacher, scale, parts = self.config, given(targets.map), self.config.logit_scale, {}
        if self.mean is not None and self.std is not None:
            teacher = (teacher - self.mean[:, None, None]) / self.std[:, None, None]
        expanded, teacher = same_grid(float32(output.maps[-1]), teacher, "max")
        parts["norm"] = context.over_rows(norm(expanded, teacher).sum())
        logits = output.logits if scale is None else standardised(output.logits, scale)
        if c.ce:
            parts["ce"] = cross_entropy(logits, labels, context)
        if c.kd:
            log_probs = given(targets.log_probs)
            log_probs = log_probs if scale is None else standardised(log_probs, scale)
            parts["kd"] = context.over_rows(kd(logits, log_probs, c.temperature).sum())
        loss = c.matched.factor(context.progress) * parts["norm"]
        for name, weight in (("ce", c.ce), ("kd", c.kd)):
            loss = loss + weight * parts[name] if weight else loss
        return {"loss": loss, **parts}


def _statistics(config: NormConfig, teacher: TeacherInfo) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if config.standardise_map is False:
        return None, None
    if teacher.mean is None or teacher.std is None:
        raise TargetsError(
            "the cache has no statistics of the teacher's map",
            where="loss.norm.standardise_map",
            found=config.standardise_map,
            do="Cache the map again, or set loss.norm.standardise_map=false",
        )
    # What comes out of a ReLU has no negative mean in any channel; of other maps some of hundreds have one.
    if config.standardise_map == "auto" and bool((teacher.mean >= 0).all()):
        return None, None
    usual = teacher.std.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return teacher.mean.clone(), torch.where(teacher.std < _LEAST * usual, usual, teacher.std)
