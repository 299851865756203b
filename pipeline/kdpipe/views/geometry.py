"""Which part of an image a view shows, drawn for a whole block at once.

Geometry is held as random numbers, not boxes: a box follows once the image's size is known, and the rendering
once the render size is, so one view can be rendered at any number of sizes.
"""

import math
from dataclasses import dataclass

from kdpipe.views.draws import DrawStage, below, uniform, words
from kdpipe.views.policy import Interpolation, ViewsConfig

_ATTEMPTS = 10  # as torchvision and timm do, before they fall back to a centre crop
_RESIZED_PROB = 0.5  # of a random scale, and of a random ratio, in timm's rkrc and rkrr


@dataclass(frozen=True)
class Crop:
    """A box of the decoded image in pixels, which is resized to the render size."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Whole:
    """The whole image resized to height x width, of which the render size is cut at (top, left).

    Where the resized image is smaller, top or left is negative and the rest is its reflection.
    """

    height: int
    width: int
    top: int
    left: int


class Geometry:
    """Draws of one view of several samples; a pure function of its arguments."""

    def __init__(self, config: ViewsConfig, hashes: list[bytes]) -> None:
        u = uniform(words(hashes, DrawStage.GEOMETRY, 2 * _ATTEMPTS + 2))
        self._mode, self._ratio = config.train_crop_mode, config.crop_ratio
        low, high = config.crop_scale
        log_low, log_high = math.log(self._ratio[0]), math.log(self._ratio[1])
        self._areas = (low + (high - low) * u[:, 0 : 2 * _ATTEMPTS : 2]).tolist()
        self._log_ratios = (log_low + (log_high - log_low) * u[:, 1 : 2 * _ATTEMPTS : 2]).tolist()
        # rkrc and rkrr take the first area and ratio, each by a coin, and maybe place the crop.
        self._coins = (u[:, 2:4] < _RESIZED_PROB).tolist()
        self._places = u[:, 2 * _ATTEMPTS :].tolist()
        flips = uniform(words(hashes, DrawStage.FLIP, 2))
        self._mirrored = (flips[:, 0] < config.hflip).tolist()
        self._upset = (flips[:, 1] < config.vflip).tolist()
        self._interpolation = config.interpolation
        if config.interpolation == "random":
            self._bilinear = (uniform(words(hashes, DrawStage.INTERPOLATION, 1))[:, 0] < 0.5).tolist()

    def flips(self, i: int) -> tuple[bool, bool]:
        """Whether sample `i` is mirrored left to right, and turned upside down."""
        return self._mirrored[i], self._upset[i]

    def interpolation(self, i: int) -> Interpolation:
        """How sample `i` is resized."""
        if self._interpolation == "random":
            return "bilinear" if self._bilinear[i] else "bicubic"
        return self._interpolation

    def box(self, i: int, height: int, width: int, size: int) -> Crop | Whole:
        """What sample `i`, an image of `height` x `width` pixels, shows at render size `size`."""
        return self._crop(i, height, width) if self._mode == "rrc" else self._whole(i, height, width, size)

    def _crop(self, i: int, height: int, width: int) -> Crop:
        """torchvision's RandomResizedCrop."""
        for area, log_ratio in zip(self._areas[i], self._log_ratios[i], strict=True):
            ratio, pixels = math.exp(log_ratio), area * height * width
            w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 1 <= w <= width and 1 <= h <= height:
                down, right = self._places[i]
                return Crop(below(down, height - h + 1), below(right, width - w + 1), h, w)
        h, w = _widest(height, width, self._ratio)
        return Crop((height - h) // 2, (width - w) // 2, h, w)

    def _whole(self, i: int, height: int, width: int, size: int) -> Whole:
        """timm's ResizeKeepRatio with random scale and ratio, then CenterCropOrPad or RandomCropOrPad."""
        scaled, stretched = self._coins[i]
        # A share of the area, as in a random resized crop: less of it is a larger image.
        factor = 1 / math.sqrt(self._areas[i][0]) if scaled else 1.0
        aspect = math.sqrt(math.exp(self._log_ratios[i][0])) if stretched else 1.0
        shrink = min(height, width) / size
        h, w = (max(1, round(side * f / shrink)) for side, f in ((height, factor / aspect), (width, factor * aspect)))
        if self._mode == "rkrc":
            # timm rounds half to even where it cuts, and down where it pads.
            top, left = (round((n - size) / 2) if n >= size else -((size - n) // 2) for n in (h, w))
        else:
            top, left = (
                int(math.copysign(below(u, abs(n - size) + 1), n - size))
                for u, n in zip(self._places[i], (h, w), strict=True)
            )
        return Whole(h, w, top, left)


def _widest(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """The largest centre box whose aspect ratio is allowed: what both libraries fall back to."""
    if width / height < ratio[0]:
        return max(1, min(height, round(width / ratio[0]))), width
    if width / height > ratio[1]:
        return height, max(1, min(width, round(height * ratio[1])))
    return height, width
