"""uint8 batches to what a model expects, on the model's device."""

from collections.abc import Sequence

import torch
from torch import nn

from kdpipe.views.erasing import Erased, noise_values


class Normalize(nn.Module):
    """(x / 255 - mean) / std, per channel; then noise where views are erased.

    Input: uint8 (N, H, W, 3), and where it is erased. Output: float32 (N, 3, H, W) in channels_last memory, which
    costs no copy, or contiguous if `channels_last` is false. Noise is in normalised units: whatever mean and
    std a model has, it sees the same.
    """

    mean: torch.Tensor
    std: torch.Tensor
    noise: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32) * 255, persistent=False)
        self.register_buffer("noise", torch.from_numpy(noise_values()), persistent=False)

    def forward(self, images: torch.Tensor, erased: Erased | None = None) -> torch.Tensor:
        """Normalise a batch; see the class for shapes."""
        x = images.to(torch.float32).sub_(self.mean).div_(self.std)
        if erased is not None:
            for row, k in zip(*erased.boxes[:, :, 2].nonzero(), strict=True):
                top, left, h, w = erased.boxes[row, k].tolist()
                place = (int(row), slice(top, top + h), slice(left, left + w))
                x[place] = self.noise[images[place].int()] if erased.noise else 0.0
        x = x.permute(0, 3, 1, 2)
        return x if self.channels_last else x.contiguous()
