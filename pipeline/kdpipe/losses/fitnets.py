"""FitNets: the teacher's final map as a hint, by the mean squared error."""

import torch

from kdpipe.losses.align import MapLoss
from kdpipe.losses.base import float32
from kdpipe.losses.config import FitNetsConfig


def squared_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over all elements of a row of (s - t)^2: float (n, ...) twice -> (n,).

    Of the student's map after a regressor this is the hint loss of Romero et al., "FitNets: Hints for Thin Deep
    Nets" (2015), equation 3, with a mean in place of half the sum.
    """
    return (float32(student) - float32(teacher)).square().flatten(1).mean(dim=1)


class FitNets(MapLoss):
    """`squared_error` of the student's last map, through a 1x1 convolution to the teacher's width.

    The paper's regressor has the kernel that brings the student's grid down to the hint's. Here it stays 1x1, and
    the larger of the two maps is averaged down to the other's grid. The hint is learned together with the rest
    rather than in a stage before it. Parts: `fitnets`.
    """

    name, Config = "fitnets", FitNetsConfig
    config: FitNetsConfig

    def rows(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See MapLoss."""
        return squared_error(student, teacher)
