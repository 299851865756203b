"""Sharpness and the two blurs."""

import math

import cv2
import numpy as np

from kdpipe.views.ops.colour import blend

_RADIUS = 11  # of torchvision's kernel of 23 as timm sets it, whatever the sigma


def sharpness(image: np.ndarray, f: float) -> None:
    """Blend with a smoothed image by `f` >= 0; 1 changes nothing (ImageEnhance.Sharpness, byte-equal).

    uint8 (H, W, 3), in place. The outermost pixels stay as they are, as in PIL's 3 x 3 filters.
    """
    if min(image.shape[:2]) < 3:
        return
    # SMOOTH weighs the middle 5 and its eight neighbours 1 each: a box, which is fast, and four times the
    # middle. Thirteenths are never halfway between two levels, so the rounding can't depend on float's.
    total = cv2.boxFilter(image, cv2.CV_16U, (3, 3), normalize=False)
    total += image.astype(np.uint16) << 2
    smooth = cv2.convertScaleAbs(total, alpha=1 / 13)
    for edge in (0, -1):
        smooth[edge], smooth[:, edge] = image[edge], image[:, edge]
    blend(image, smooth, f)


def gaussian_blur(image: np.ndarray, sigma: float) -> None:
    """True Gaussian blur, `sigma` > 0 pixels, mirrored at the border, reaching 11 pixels at most.

    uint8 (H, W, 3), in place. torchvision's GaussianBlur(23) on a PIL image, within one level: weights
    beyond four sigma are left out. Any image size; torchvision refuses sides below 12.
    """
    radius = min(_RADIUS, math.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    _separable(image, weights / weights.sum(), cv2.BORDER_REFLECT_101)


def box_blur(image: np.ndarray, radius: float) -> None:
    """PIL's ImageFilter.GaussianBlur(radius): three box blurs with fractional ends. uint8 (H, W, 3), in place.

    The three are one kernel here, rounded once where PIL rounds six times and loses changes of less than half
    a level each time: within three levels of PIL, and of radius 1.3 or more nearly all within one. Some more
    apart within 3 radii of the border, which PIL repeats again before each pass. A tenth of PIL's time.

    Source: Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, 2011.
    """
    variance = radius**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[[0, -1]] = part
    box /= box.sum()
    _separable(image, np.convolve(np.convolve(box, box), box), cv2.BORDER_REPLICATE)


def _separable(image: np.ndarray, weights: np.ndarray, border: int) -> None:
    """Filter rows and columns with one kernel, float64 (odd,). In float32: on bytes OpenCV would round weights."""
    weights = weights.astype(np.float32)
    cv2.convertScaleAbs(cv2.sepFilter2D(image, cv2.CV_32F, weights, weights, borderType=border), dst=image)
