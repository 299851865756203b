"""MGD: the teacher's final map, generated from a student's map of which channels are masked."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdpipe.losses.align import MapLoss, same_grid
from kdpipe.losses.base import float32, given, of_teacher
from kdpipe.losses.config import MgdConfig
from kdpipe.losses.inputs import FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.targets import Targets


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


class MaskedGenerative(MapLoss):
    """`mgd` of the student's last map: aligned by a 1x1 convolution where widths differ, masked, generated anew by
    3x3 convolution, ReLU, 3x3 convolution.

    As in the paper's classification whole channels are masked, (n, D, 1, 1); its detection masks positions. The
    paper's grids are equal; else the larger map is averaged down to the other's, before it is masked. Parts: `mgd`.
    """

    name, Config = "mgd", MgdConfig
    config: MgdConfig
    align_equal = False

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__(config, student, teacher)
        wide = of_teacher(self.name, teacher, "map")[0]
        self.generate = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
        )

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """See Loss."""
        student, _ = same_grid(self.align(output.maps[-1]), given(targets.map))
        return replace(output, maps=(self.generate(student * channel_mask(student, self.config.mask)),))

    def rows(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See MapLoss."""
        return mgd(student, teacher)
