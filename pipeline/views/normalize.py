"""uint8 batches to what a model expects, on the model's device."""

from collections.abc import Sequence

import torch
from torch import nn


class Normalize(nn.Module):
    """(x / 255 - mean) / std, per channel.

    Input: uint8 (N, H, W, 3). Output: float32 (N, 3, H, W) in channels_last memory, which costs no copy, or
    contiguous if `channels_last` is false.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32) * 255, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch; see the class for shapes."""
        x = images.to(torch.float32).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)
        return x if self.channels_last else x.contiguous()
