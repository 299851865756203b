"""Shear, translation, rotation: affine warps as PIL's Image.transform defines them.

Sampling is in float32 and fractions are dropped, as PIL drops them: rounding would make views half a level
brighter than timm's. Values where the output shows the image, away from its border, against PIL's:

- bilinear, and bicubic translations: 999 in 1000 are equal, the rest one level off. At round arguments PIL's
  own sums fall just short of whole levels, and a tenth may be one level off.
- other bicubic warps: OpenCV's cubic (a = -0.75, positions in steps of 1/32 pixel; PIL has a = -1). At 224
  pixels 55 in 100 are equal and 96 within one level; more differ the finer the detail.

Where the image ends, PIL cuts pixels hard, and so do translations here; the others blend with the fill, over
one pixel (bilinear) or two (bicubic). Processors without fused multiplication give 1 value in 30,000 one
level off what those with it give.
"""

import math

import cv2
import numpy as np

Fill = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]

# Rounding x + _DOWN drops x's fraction. The 2**-12 is for sums meant to be whole, in even areas for
# instance, which float32 may miss from below.
_DOWN = -0.5 + 2**-12


def affine(image: np.ndarray, matrix: Matrix, interpolation: str, fill: Fill) -> None:
    """Sample the image at transformed positions. uint8 (H, W, 3), in place.

    Args:
        image: the array.
        matrix: (a, b, c, d, e, f), pixels: the output's centre (x + .5, y + .5) shows the input's
            (a (x + .5) + b (y + .5) + c, d (x + .5) + e (y + .5) + f).
        interpolation: "bilinear" or "bicubic".
        fill: colour of what the input does not cover.
    """
    a, b, c, d, e, f = matrix
    if (a, b, d, e) == (1, 0, 0, 1) and 0 in (c, f):
        _shift(image, *((1, c) if c else (0, f)), interpolation, fill)
        return
    height, width = image.shape[:2]
    inverse = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    cubic = interpolation == "bicubic"
    # Linear sampling is vectorised for four channels, which pays for widening the pixels; cubic is not.
    source = image if cubic else cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    warped = cv2.warpAffine(
        source.astype(np.float32),
        inverse,
        (width, height),
        flags=(cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(*fill, 0),
    )
    if cubic:
        _floor(warped, image)
    else:
        cv2.cvtColor(cv2.convertScaleAbs(warped, beta=_DOWN), cv2.COLOR_RGBA2RGB, dst=image)


def shear_x(image: np.ndarray, f: float, interpolation: str, fill: Fill) -> None:
    """Row y (its centre at y + .5) shows what lies f (y + .5) pixels to its right. uint8 (H, W, 3), in place."""
    affine(image, (1, f, 0, 0, 1, 0), interpolation, fill)


def shear_y(image: np.ndarray, f: float, interpolation: str, fill: Fill) -> None:
    """Column x (its centre at x + .5) shows what lies f (x + .5) pixels below. uint8 (H, W, 3), in place."""
    affine(image, (1, 0, 0, f, 1, 0), interpolation, fill)


def translate_x(image: np.ndarray, share: float, interpolation: str, fill: Fill) -> None:
    """Show what lies `share` of the width to the right (timm's translate_x_rel). uint8 (H, W, 3), in place."""
    affine(image, (1, 0, share * image.shape[1], 0, 1, 0), interpolation, fill)


def translate_y(image: np.ndarray, share: float, interpolation: str, fill: Fill) -> None:
    """Show what lies `share` of the height below (timm's translate_y_rel). uint8 (H, W, 3), in place."""
    affine(image, (1, 0, 0, 0, 1, share * image.shape[0]), interpolation, fill)


def rotate(image: np.ndarray, degrees: float, interpolation: str, fill: Fill) -> None:
    """Turn counter-clockwise about the centre. uint8 (H, W, 3), in place.

    Like Image.rotate, half turns and, of squares, quarter turns move pixels without sampling.
    """
    height, width = image.shape[:2]
    quarters = degrees % 360 / 90
    if quarters % (1 if height == width else 2) == 0:
        image[:] = np.rot90(image, int(quarters)).copy()
        return
    # Rounded as PIL rounds them: what is meant to be 0 or 1 is.
    a, b = round(math.cos(math.radians(degrees)), 15), -round(math.sin(math.radians(degrees)), 15)
    x, y = width / 2, height / 2
    affine(image, (a, b, x - a * x - b * y, -b, a, y + b * x - a * y), interpolation, fill)


def _shift(image: np.ndarray, axis: int, pixels: float, interpolation: str, fill: Fill) -> None:
    """Show what lies `pixels` below (axis 0) or to the right (axis 1): one filter, a fifth of a warp's cost."""
    length = image.shape[axis]
    # Output pixels whose centre falls on the input.
    first, stop = (min(max(math.ceil(edge - pixels - 0.5), 0), length) for edge in (0, length))
    if pixels == 0:
        return
    if first >= stop:
        image[:] = fill
        return
    whole = math.floor(pixels)
    weights = _weights(pixels - whole, interpolation)
    # The first output pixel may lie up to half a pixel before the first input pixel: one more of those.
    padded = cv2.copyMakeBorder(image, 1 - axis, 0, axis, 0, cv2.BORDER_REPLICATE)
    moved = cv2.filter2D(
        padded,
        -1,
        weights[None] if axis else weights[:, None],
        anchor=(1, 0) if axis else (0, 1),
        delta=_DOWN,
        borderType=cv2.BORDER_REPLICATE,
    )
    part = slice(first + whole + 1, stop + whole + 1)
    if axis:
        top, bottom, left, right, shown = 0, 0, first, length - stop, moved[:, part]
    else:
        top, bottom, left, right, shown = first, length - stop, 0, 0, moved[part]
    cv2.copyMakeBorder(shown, top, bottom, left, right, cv2.BORDER_CONSTANT, dst=image, value=fill)


def _weights(t: float, interpolation: str) -> np.ndarray:
    """Weights of the four pixels around a position `t` in [0, 1) past the second: float32 (4,)."""
    if interpolation == "bilinear":
        return np.array([0, 1 - t, t, 0], np.float32)
    u = 1 - t
    return np.array([-t * u * u, (t - 2) * t * t + 1, (u - 2) * u * u + 1, -u * t * t], np.float32)


def _floor(values: np.ndarray, out: np.ndarray) -> None:
    """float32 to uint8 of one shape, clipped, fractions dropped; changes `values`."""
    cv2.threshold(values, 0, 0, cv2.THRESH_TOZERO, dst=values)
    # Of the absolute value, but what is left below 0 is _DOWN alone, which rounds to 0.
    cv2.convertScaleAbs(values, dst=out, beta=_DOWN)
