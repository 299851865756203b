"""Feature maps of student and teacher brought to one shape: grids by pooling, widths by a 1x1 convolution."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TargetsError
from kdpipe.losses.base import Loss, Parts, float32, given, of_teacher
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.targets import Labels, Targets


def same_grid(
    student: torch.Tensor, teacher: torch.Tensor, pool: Literal["avg", "max"] = "avg"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool the map with the larger grid to the other's; along each axis by itself.

    Args:
        student: (n, c, h, w).
        teacher: (n, d, k, l).
        pool: mean or largest value of each cell.

    Returns:
        (n, c, min(h, k), min(w, l)) and (n, d, min(h, k), min(w, l)); the same tensors where grids are equal.
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    pooled = F.adaptive_avg_pool2d if pool == "avg" else F.adaptive_max_pool2d
    first, second = (x if x.shape[2:] == size else pooled(x, size) for x in (student, teacher))
    return first, second


class MapLoss(Loss):
    """A loss between the final maps: the student's through a 1x1 convolution to the teacher's width, then averaged
    over cells where its grid is larger, as the teacher's is where that one is larger.

    A subclass defines `rows`. Parts: one, by the loss's name.
    """

    align_equal: ClassVar[bool] = True  # a convolution where widths are equal too

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        wide = of_teacher(self.name, teacher, "map")[0]
        narrow = given(student).maps[-1][0]
        self.align = nn.Conv2d(narrow, wide, 1) if narrow != wide or self.align_equal else nn.Identity()

    def rows(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The loss of each row (n,), of two float32 maps (n, D, h, w)."""
        raise NotImplementedError

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """See Loss."""
        return replace(output, maps=(self.align(output.maps[-1]),))

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        maps = same_grid(float32(output.maps[-1]), given(targets.map))
        loss = context.over_rows(self.rows(*maps).sum())
        return {"loss": loss, self.name: loss}


def require_nonnegative(name: str, pooled: torch.Tensor) -> None:
    """Refuse a teacher's feature that an adapter ending in a ReLU could never reach.

    Raises:
        TargetsError: a value of `pooled`, any shape, is negative.
    """
    least = float(pooled.min()) if pooled.numel() else 0.0
    if least < 0:
        raise TargetsError(
            "the teacher's feature has negative values, and the adapter ends in a ReLU",
            where=name,
            found=f"{least:.3g}",
            allowed="0 and above, as of ResNets",
            do=f"Set loss.{name}.relu=false",
        )
