"""Feature distillation: the teacher's final map, position by position, by a smooth L1 distance."""

import torch
from torch.nn import functional as F

from kdpipe.losses.align import MapLoss
from kdpipe.losses.base import float32
from kdpipe.losses.config import FdConfig


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


class FeatureDistillation(MapLoss):
    """`fd` of the student's last map, through a 1x1 convolution to the teacher's width.

    `paper` is the form of the large-kernel paper, `whitened` the original one. There the grids are equal by the
    choice of resolutions; else the larger map is averaged down to the other's grid, before it is whitened.
    Parts: `fd`.
    """

    name, Config = "fd", FdConfig
    config: FdConfig

    def rows(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See MapLoss."""
        return fd(student, teacher, whitened=self.config.form == "whitened")
