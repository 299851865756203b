"""Dual-view feature mimicking: two maps compared in directions of their tokens, whole and without their means."""

import torch
from torch.nn import functional as F

from kdpipe.losses.base import float32


def spatial(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_spat of each row, sum_p || s^_p - t^_p ||^2 with channels of length 1 at each position p: (n,).

    ScaleKD (Fan et al., 2024), dual-view feature mimicking, original view. A sum over positions, between 0 and
    4hw; lengths of tokens have no effect.

    Args:
        student, teacher: float (n, D, h, w); float64 is kept, other dtypes are computed in float32.
    """
    with torch.autocast(student.device.type, enabled=False):
        s, t = F.normalize(float32(student), dim=1), F.normalize(float32(teacher), dim=1)
        return (s - t).square().sum(dim=(1, 2, 3))


def frequency(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_freq of each row, L_spat of both maps without each channel's mean over positions: (n,).

    ScaleKD, dual-view feature mimicking, frequency view: the paper zeroes the DC coefficient of a discrete cosine
    transform and transforms back, which takes away the mean and nothing else. Without that largest
    component the others have more weight. 0 for maps of one position.

    Args:
        student, teacher: as in `spatial`.
    """
    s, t = float32(student), float32(teacher)
    return spatial(s - s.mean(dim=(2, 3), keepdim=True), t - t.mean(dim=(2, 3), keepdim=True))
