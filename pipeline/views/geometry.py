"""Which part of an image a view shows: random resized crop and flip, drawn for a whole block at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.views.draws import below, stream_hash, uniform, words
from pipeline.views.policy import Stage, ViewsConfig

_ATTEMPTS = 10  # as torchvision and timm do, before they fall back to a centre crop


@dataclass(frozen=True)
class Crop:
    """A box of the decoded image in pixels, and whether its rendering is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


class Geometry:
    """Draws of one view of several samples of one shard; a pure function of its arguments.

    Geometry is held as random numbers, not boxes: `crop` turns them into a box once the image's size is
    known, so one view can be rendered at any number of sizes.
    """

    def __init__(self, config: ViewsConfig, shard: str, keys: Sequence[str], view: int) -> None:
        hashes = [stream_hash("view", config.seed, shard, key, view) for key in keys]
        u = uniform(words(hashes, Stage.GEOMETRY, 2 * _ATTEMPTS + 2))
        low, high = config.scale
        log_low, log_high = math.log(config.ratio[0]), math.log(config.ratio[1])
        self._areas = (low + (high - low) * u[:, 0 : 2 * _ATTEMPTS : 2]).tolist()
        self._log_ratios = (log_low + (log_high - log_low) * u[:, 1 : 2 * _ATTEMPTS : 2]).tolist()
        self._places = u[:, 2 * _ATTEMPTS :].tolist()
        self._flips = (uniform(words(hashes, Stage.FLIP, 1))[:, 0] < config.hflip).tolist()
        self._ratio = config.ratio

    def crop(self, i: int, height: int, width: int) -> Crop:
        """The box of sample `i`, an image of `height` x `width` pixels (torchvision's RandomResizedCrop)."""
        flip = self._flips[i]
        for area, log_ratio in zip(self._areas[i], self._log_ratios[i], strict=True):
            ratio, pixels = math.exp(log_ratio), area * height * width
            w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 1 <= w <= width and 1 <= h <= height:
                down, right = self._places[i]
                return Crop(below(down, height - h + 1), below(right, width - w + 1), h, w, flip)
        h, w = _widest(height, width, self._ratio)
        return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


def _widest(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """The largest centre box whose aspect ratio is allowed: what both libraries fall back to."""
    if width / height < ratio[0]:
        return max(1, min(height, round(width / ratio[0]))), width
    if width / height > ratio[1]:
        return height, max(1, min(width, round(height * ratio[1])))
    return height, width
