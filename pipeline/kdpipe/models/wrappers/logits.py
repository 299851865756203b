"""Logits that were trained standardised: what makes probabilities of them, wherever the weights are loaded."""

import torch
from torch.nn import functional as F

# Added to a row's variance: NORM's.
_EPS = 1e-7


def standardised(logits: torch.Tensor, scale: float = 2.5) -> torch.Tensor:
    """Each row's mean taken away, divided by its deviation, times `scale`: (n, C) -> (n, C), at least float32.

    NORM's loss sees logits of both sides only like this (LayerNorm without weights, eps 1e-7), so that the
    network's own logits have any size: their order is right, their softmax isn't. The softmax of the standardised
    ones is what was trained. It doesn't matter whether log-probabilities are given: they differ by a shift.
    """
    x = logits if logits.dtype == torch.float64 else logits.float()
    return F.layer_norm(x, x.shape[-1:], eps=_EPS) * scale
