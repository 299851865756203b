"""MGD: the teacher's final map, made again from a student's map of which channels are missing."""

from typing import Any, Self

import torch
from pydantic import Field
from torch import nn

from kdpipe.losses.align import map_shapes, same_grid, to_width
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.targets import Labels, Targets


def mgd(generated: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||G(mask * align f_s) - f_t||^2, the sum over channels and positions of each row: (n,).

    Yang et al., "Masked Generative Distillation" (2022), section 3.

    Args:
        generated: (n, D, h, w), what the generator made of the masked map.
        teacher: (n, D, h, w).
    """
    return (float32(generated) - float32(teacher)).square().flatten(1).sum(dim=1)


def channel_mask(x: torch.Tensor, ratio: float) -> torch.Tensor:
    """0 with probability `ratio`, else 1, for each channel of each row of (n, D, h, w): (n, D, 1, 1), x's dtype.

    Drawn as dropout is, from torch's own generator; kept channels are not scaled up.
    """
    return (torch.rand(*x.shape[:2], 1, 1, device=x.device) >= ratio).to(x.dtype)


class MgdConfig(TermConfig):
    """Numbers of `mgd`, those of the paper's classification."""

    weight: float = Field(7e-5, ge=0, description="of the loss where several are summed: the paper's alpha")
    mask: float = Field(0.15, ge=0, lt=1, description="share of channels that are masked: the paper's lambda")


class MaskedGenerative(Loss):
    """`mgd` of the student's last map: aligned by a 1x1 convolution where widths differ, masked, generated anew by
    3x3 convolution, ReLU, 3x3 convolution.

    As in the paper's classification whole channels are masked, (n, D, 1, 1); its detection masks positions. The
    paper's grids are equal; else the larger map is averaged down to the other's, before it is masked. Parts: `mgd`.
    """

    name, paper = "mgd", "Yang et al. 2022, Masked Generative Distillation"
    Config = MgdConfig
    trains_classifier = False
    config: MgdConfig

    def __init__(self, config: MgdConfig, student: int, teacher: int) -> None:
        super().__init__(config)
        self.align = nn.Identity() if student == teacher else to_width(student, teacher)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

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
        student, teacher = same_grid(self.align(output.maps[-1]), teacher)
        generated = self.generate(student * channel_mask(student, self.config.mask))
        with torch.autocast(generated.device.type, enabled=False):
            loss = context.over_rows(mgd(generated, teacher).sum())
        return {"loss": loss, "mgd": loss}
