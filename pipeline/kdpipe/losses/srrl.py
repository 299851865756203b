"""SRRL: a feature is good if the teacher's own classifier reads the teacher's logits from it."""

import math
from typing import Any, Self

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from kdpipe.losses.align import require_nonnegative, teacher_head
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.fitnets import squared_error
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
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


class SrrlConfig(TermConfig):
    """Numbers of `srrl`."""

    regression: float = Field(5.0, ge=0, description="weight of the error between logits against that of features")
    relu: bool = Field(False, description="the connector ends in a ReLU: the paper's, for ResNets as teachers")


class Srrl(Loss):
    """Feature error + regression * logit error of `srrl`, behind a connector: 1x1 convolution, BatchNorm, ReLU.

    The connector is applied to the student's last map, whose mean over positions is compared: grids may differ. The
    paper's teachers have features without negative values; those of ConvNeXt's, SLaK's and Swin's kind have them,
    which a ReLU would never reach, so that `relu` is off unless it is asked for. The teacher's logits are those of
    its classifier for the cached feature. Parts: `srrl_feature`, `srrl_logits`.
    """

    name, paper = "srrl", "Yang et al. 2021, Softmax Regression Representation Learning"
    Config = SrrlConfig
    trains_classifier = False
    config: SrrlConfig
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: SrrlConfig, student: int, head: nn.Linear) -> None:
        super().__init__(config)
        width = head.in_features
        self.connector = nn.Sequential(
            nn.Conv2d(student, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU() if config.relu else nn.Identity()
        )
        nn.init.normal_(self.connector[0].weight, std=math.sqrt(2 / width))  # type: ignore[arg-type]
        # The cache has them: no part of a checkpoint.
        self.register_buffer("weight", head.weight.detach().clone(), persistent=False)
        self.register_buffer("bias", head.bias.detach().clone(), persistent=False)
        self._tried = False

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        return Requirements(pooled=True, head=True, maps=1)

    @classmethod
    def make(cls, config: Any, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """See Loss."""
        assert student.maps, "Requirements.maps asks for it"
        return cls(config, student.maps[-1][0], teacher_head(cls.name, info))

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        teacher = require_targets(self.name, self.requirements, targets).pooled
        assert teacher is not None
        if self.config.relu and not self._tried:
            require_nonnegative(self.name, teacher)
            self._tried = True
        student = self.connector(output.maps[-1])
        with torch.autocast(student.device.type, enabled=False):
            terms = srrl(float32(student).mean(dim=(2, 3)), teacher, self.weight, self.bias)
            feature, logits = (context.over_rows(term.sum()) for term in terms)
        return {"loss": feature + self.config.regression * logits, "srrl_feature": feature, "srrl_logits": logits}
