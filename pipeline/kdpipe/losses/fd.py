"""Feature distillation: the teacher's final map, position by position, by a smooth L1 distance."""

from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch.nn import functional as F

from kdpipe.losses.align import map_shapes, same_grid, to_width
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.targets import Labels, Targets


def fd(student: torch.Tensor, teacher: torch.Tensor, *, whitened: bool = False, beta: float = 2.0) -> torch.Tensor:
    """Smooth L1 between two maps, the mean over positions and channels of each row: (n,).

    Wei et al., "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature Distillation" (2022),
    section 3; Huang et al., "Are Large Kernels Better Teachers than Transformers for ConvNets?" (2023).

    Args:
        student: (n, D, h, w), already of the teacher's width.
        teacher: (n, D, h, w).
        whitened: each position's vector of the teacher has its mean taken away and is divided by its deviation
            (LayerNorm without weights, eps 1e-5), so that no channel's size rules the loss.
        beta: up to which difference the loss is quadratic.
    """
    student, teacher = float32(student), float32(teacher)
    if whitened:
        tokens = teacher.movedim(1, -1)  # (n, h, w, D)
        teacher = F.layer_norm(tokens, tokens.shape[-1:]).movedim(-1, 1)
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).flatten(1).mean(dim=1)


class FdConfig(TermConfig):
    """Numbers of `fd`. The weight is the large-kernel paper's, for the form `paper` beside CE, KD or NKD."""

    weight: float = Field(3e-5, ge=0, description="of the loss where several are summed")
    form: Literal["paper", "whitened"] = Field(
        "paper", description="paper: the teacher's map as it is; whitened: each position's vector normalised"
    )


class FeatureDistillation(Loss):
    """`fd` of the student's last map, through a 1x1 convolution to the teacher's width.

    `paper` is the form of the large-kernel paper, `whitened` the original one. There the grids are equal by the
    choice of resolutions; else the larger map is averaged down to the other's grid, before it is whitened.
    Parts: `fd`.
    """

    name, paper = "fd", "Wei et al. 2022, Feature Distillation; Huang et al. 2023, Large Kernels as Teachers"
    Config = FdConfig
    trains_classifier = False
    config: FdConfig

    def __init__(self, config: FdConfig, student: int, teacher: int) -> None:
        super().__init__(config)
        self.align = to_width(student, teacher)

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        return Requirements(map=True, maps=1)

    @classmethod
    def make(cls, config: Any, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """See Loss."""
        (narrow, *_), (wide, *_) = map_shapes(cls.name, student, info)
        return cls(config, narrow, wide)

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        teacher = require_targets(self.name, self.requirements, targets).map
        assert teacher is not None
        student = self.align(output.maps[-1])
        with torch.autocast(student.device.type, enabled=False):
            losses = fd(*same_grid(float32(student), teacher), whitened=self.config.form == "whitened")
            loss = context.over_rows(losses.sum())
        return {"loss": loss, "fd": loss}
