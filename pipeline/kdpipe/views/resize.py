"""Resizing, cutting and flipping uint8 images, channels last.

The resize is ATen's antialiased uint8 kernel, five times as fast as PIL's, called with `out=` because adding a
batch dimension to a cropped view otherwise returns channels first and copies. Torch's own threads are not used:
the caller spreads samples over threads.
"""

import math

import cv2
import numpy as np
import torch

from kdpipe.views.geometry import Whole
from kdpipe.views.policy import Interpolation

_RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
# A sliver of an image, its short side made hundreds of pixels, may grow beyond memory. Above this many pixels
# only the part that is seen is resized, which may move it by a fraction of a pixel.
_LARGEST = 2**26


def resize(image: np.ndarray, out: np.ndarray, interpolation: Interpolation) -> None:
    """Antialiased resize of uint8 (h, w, 3), any strides, into uint8 (H, W, 3)."""
    if image.shape == out.shape:
        out[:] = image
        return
    source = torch.from_numpy(image).permute(2, 0, 1)[None]
    target = torch.from_numpy(out).permute(2, 0, 1)[None]
    _RESIZE[interpolation](source, list(out.shape[:2]), False, None, None, out=target)


def resize_whole(image: np.ndarray, box: Whole, out: np.ndarray, interpolation: Interpolation) -> None:
    """Resize all of an image to `box.height` x `box.width` and cut `out`, uint8 (S, S, 3), at its place.

    What lies outside is reflected.
    """
    image, box = _seen(image, box, len(out))
    whole = np.empty((box.height, box.width, 3), np.uint8)
    resize(image, whole, interpolation)
    top, left, size = box.top, box.left, len(out)
    if min(top, left) >= 0 and top + size <= box.height and left + size <= box.width:
        out[:] = whole[top : top + size, left : left + size]
    else:
        out[:] = whole[_reflected(top, size, box.height)[:, None], _reflected(left, size, box.width)]


def flip(image: np.ndarray, axis: int) -> None:
    """Flip uint8 (H, W, 3) in place, its rows (0) or its columns (1)."""
    cv2.flip(image, axis, dst=image)


def _seen(image: np.ndarray, box: Whole, size: int) -> tuple[np.ndarray, Whole]:
    """The strip of a sliver that is seen, and where `box` lies in it; others as they are."""
    if box.height * box.width <= _LARGEST:
        return image, box
    if box.height > box.width:
        turned, placed = _seen(image.swapaxes(0, 1), Whole(box.width, box.height, box.left, box.top), size)
        return turned.swapaxes(0, 1), Whole(placed.width, placed.height, placed.left, placed.top)
    grown = box.width / image.shape[1]
    # The interpolation's reach and a little more.
    first = max(0, math.floor(box.left / grown) - 4)
    stop = min(image.shape[1], math.ceil((box.left + size) / grown) + 4)
    strip = image[:, first:stop]
    return strip, Whole(box.height, round((stop - first) * grown), box.top, round(box.left - first * grown))


def _reflected(start: int, count: int, side: int) -> np.ndarray:
    """Indices start .. start + count - 1 folded into range(side) without repeating the edge."""
    if side == 1:
        return np.zeros(count, np.int64)
    at = np.abs(np.arange(start, start + count)) % (2 * side - 2)
    return np.minimum(at, 2 * side - 2 - at)
