"""Effective receptive fields: which of an image's pixels the centre of a model's final map depends on, and how much."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from kdpipe.errors import TeacherError

# Shares of the whole at which the large-kernel papers give the side of a square.
SHARES = (0.2, 0.3, 0.5, 0.99)


class Square(NamedTuple):
    """A centred square of `side` pixels; `area` is its share of the image's area."""

    side: int
    area: float


class ReceptiveField:
    """How the centre of the final map changes with each pixel: a mean over images, added up image by image.

    Of an image x: relu(d/dx of the sum over channels of relu(map[0, :, h // 2, w // 2])), summed over colours.

    Args:
        model: with timm's `forward_features`; stays on its device, but is frozen and put into eval mode.
        name: what messages call it.

    Attributes:
        images, skipped: images that count, and those whose gradient isn't finite, which don't.

    Raises:
        TeacherError: the model has no `forward_features`.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        if not callable(getattr(model, "forward_features", None)):
            raise TeacherError("the model has no forward_features, so no final map", where=name, allowed=_ALLOWED)
        self.model, self.name = model.eval().requires_grad_(False), name
        self.images = self.skipped = 0
        self._sum: np.ndarray | float = 0.0

    def add(self, image: torch.Tensor) -> None:
        """Count an image.

        Args:
            image: float32 (1, 3, S, S), normalised, on the model's device; the same S every time.

        Raises:
            TeacherError: the model can't run at this size, or its `forward_features` gives no map.
        """
        x = image.detach().requires_grad_()
        try:
            # cuDNN's fastest backward passes add up in any order.
            with torch.enable_grad(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
                centre = self._centre(x)
                (gradient,) = torch.autograd.grad(centre.relu().sum(), x)
        except TeacherError:
            raise
        except Exception as e:  # whatever a layer raises, it is about what the user passed to this model
            reason = str(e).strip().split("\n", maxsplit=1)[0][:200]
            raise TeacherError(
                f"the model's gradient can't be computed: {type(e).__name__}: {reason}",
                where=self.name,
                found=f"an image of {image.shape[-1]} pixels",
                do="Try another --input-size",
            ) from e
        found = gradient.relu().sum(dim=(0, 1)).double().cpu().numpy()
        if np.isfinite(found).all():
            self._sum, self.images = self._sum + found, self.images + 1
        else:
            self.skipped += 1

    def heat(self) -> np.ndarray:
        """The mean, float64 (S, S).

        Raises:
            TeacherError: no image with a finite gradient, or none whose gradient isn't zero everywhere.
        """
        if not self.images:
            raise TeacherError("no gradient is finite", where=self.name, found=f"{self.skipped} images skipped")
        heat = np.asarray(self._sum / self.images)
        if not heat.any():
            raise TeacherError(
                "the centre of the final map depends on no pixel: all gradients are zero",
                where=self.name,
                found=f"{self.images} images",
                do="Take more images, or weights from before training diverged",
            )
        return heat

    def _centre(self, x: torch.Tensor) -> torch.Tensor:
        """The final map's vector in the middle, (C,)."""
        found = self.model.forward_features(x)  # type: ignore[operator]
        if not isinstance(found, torch.Tensor) or found.ndim != 4:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise TeacherError("forward_features gives no map", where=self.name, found=shape, allowed=_ALLOWED)
        # timm's name for maps whose channels come last.
        if getattr(self.model, "output_fmt", None) == "NHWC":
            found = found.permute(0, 3, 1, 2)
        return found[0, :, found.shape[2] // 2, found.shape[3] // 2]


_ALLOWED = "a model of timm's kind whose forward_features gives a map (N, C, h, w)"


def log_scale(heat: np.ndarray) -> np.ndarray:
    """log10(1 + heat) over its largest value, (S, S) from 0 to 1: what the papers draw and measure."""
    logs = np.log1p(heat)
    return logs / logs.max()


def squares(heat: np.ndarray, shares: Sequence[float] = SHARES) -> list[Square]:
    """For each share the smallest centred square that holds more than that share of the sum of `heat`.

    Args:
        heat: (S, S), none negative, not all zero.
        shares: from 0 to 1, 1 excluded.

    Returns:
        Squares whose middle is pixel (S // 2, S // 2). Their sides are odd, or S where S is even and all is needed.
    """
    size = len(heat)
    offset = np.abs(np.arange(size) - size // 2)
    ring = np.maximum(offset[:, None], offset[None, :])
    inside = np.cumsum(np.bincount(ring.ravel(), weights=heat.ravel()))
    reach = np.searchsorted(inside / inside[-1], shares, side="right")
    sides = [min(2 * int(r) + 1, size) for r in reach]
    return [Square(side, (side / size) ** 2) for side in sides]
