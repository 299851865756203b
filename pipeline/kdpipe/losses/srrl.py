"""SRRL: the student's feature should give the teacher's logits through the teacher's classifier."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.losses.align import require_nonnegative
from kdpipe.losses.base import Loss, Parts, float32, given, of_teacher
from kdpipe.losses.config import SrrlConfig
from kdpipe.losses.fitnets import squared_error
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.targets import Labels, Targets


def srrl(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two terms of each row, feature matching and softmax regression: (n,) each.

    The mean squared error between the pooled features, and that between the logits which the teacher's classifier
    gives for them. Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning" (2021),
    section 3, with the squared error between logits as the second loss.

    Args:
        student: pooled features (n, D), already of the teacher's width.
        teacher: its pooled features (n, D).
        weight, bias: of its classifier, (C, D) and (C,).
    """
    logits = (F.linear(float32(x), weight.to(float32(x).dtype), bias.to(float32(x).dtype)) for x in (student, teacher))
    return squared_error(student, teacher), squared_error(*logits)


class Srrl(Loss):
    """Feature error + regression * logit error of `srrl`, behind a connector: 1x1 convolution, BatchNorm, ReLU.

    The connector is applied to the student's last map, whose mean over positions is compared: grids may differ. The
    paper's teachers have features without negative values; ConvNeXt, SLaK and Swin have negative ones, which a ReLU
    never reaches, so that `relu` is off by default. The teacher's logits are those of
    its classifier for the cached feature. Parts: `srrl_feature`, `srrl_logits`.
    """

    name, Config = "srrl", SrrlConfig
    config: SrrlConfig
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        head = of_teacher(self.name, teacher, "head")
        narrow, width = given(student).maps[-1][0], head.in_features
        self.connector = nn.Sequential(
            nn.Conv2d(narrow, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU() if config.relu else nn.Identity()
        )
        nn.init.normal_(self.connector[0].weight, std=math.sqrt(2 / width))  # type: ignore[arg-type]
        # The cache has them: no part of a checkpoint.
        self.register_buffer("weight", head.weight.detach().clone(), persistent=False)
        self.register_buffer("bias", head.bias.detach().clone(), persistent=False)
        self._tried = False

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """See Loss."""
        return replace(output, maps=(self.connector(output.maps[-1]),))

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        teacher = given(targets.pooled)
        if self.config.relu and not self._tried:
            require_nonnegative(self.name, teacher)
            self._tried = True
        terms = srrl(float32(output.maps[-1]).mean(dim=(2, 3)), teacher, self.weight, self.bias)
        feature, logits = (context.over_rows(term.sum()) for term in terms)
        return {"loss": feature + self.config.regression * logits, "srrl_feature": feature, "srrl_logits": logits}
