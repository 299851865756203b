"""FitNets: the teacher's final map as a hint, by the mean squared error."""

from typing import Any, Self

import torch
from pydantic import Field

from kdpipe.losses.align import map_shapes, same_grid, to_width
from kdpipe.losses.base import Loss, TermConfig, float32, require_targets
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.targets import Labels, Targets


def squared_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over all elements of a row of (s - t)^2: float (n, ...) twice -> (n,).

    Of the student's map after a regressor this is the hint loss of Romero et al., "FitNets: Hints for Thin Deep
    Nets" (2015), equation 3, with a mean in place of half the sum.
    """
    return (float32(student) - float32(teacher)).square().flatten(1).mean(dim=1)


class FitNetsConfig(TermConfig):
    """Numbers of `fitnets`."""

    weight: float = Field(100.0, ge=0, description="of the loss where several are summed")


class FitNets(Loss):
    """`squared_error` of the student's last map, through a 1x1 convolution to the teacher's width.

    The paper's regressor has the kernel that brings the student's grid down to the hint's. Here it stays 1x1, and
    the larger of the two maps is averaged down to the other's grid. The hint is learned together with the rest
    rather than in a stage before it. Parts: `fitnets`.
    """

    name, paper = "fitnets", "Romero et al. 2015, FitNets: Hints for Thin Deep Nets"
    Config = FitNetsConfig
    trains_classifier = False
    config: FitNetsConfig

    def __init__(self, config: FitNetsConfig, student: int, teacher: int) -> None:
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
            loss = context.over_rows(squared_error(*same_grid(float32(student), teacher)).sum())
        return {"loss": loss, "fitnets": loss}
