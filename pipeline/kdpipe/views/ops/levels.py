"""Operations on each value alone, at most with its channel's histogram: tables, masks and saturating sums.

All equal PIL's ImageOps and timm's solarize_add byte for byte. A look-up table costs 0.4 ns a value, so
whatever a mask or a sum can do goes without one, in a tenth to a third of the time.
"""

from collections.abc import Callable

import cv2
import numpy as np

_VALUES = np.arange(256)


def autocontrast(image: np.ndarray) -> None:
    """Stretch each channel's values to 0..255 (ImageOps.autocontrast). uint8 (H, W, 3), in place."""
    _by_channel(image, _stretch)


def equalize(image: np.ndarray) -> None:
    """Flatten each channel's histogram (ImageOps.equalize). uint8 (H, W, 3), in place."""
    _by_channel(image, _flatten)


def _by_channel(image: np.ndarray, make: Callable[[np.ndarray], np.ndarray | None]) -> None:
    """Send each channel, uint8 (H, W), through the table `make` gives for it: (256,), fractions are dropped.

    Apart, copying included, channels take three quarters of the time that they take interleaved.
    """
    planes = cv2.split(image)
    tables = [make(plane) for plane in planes]
    if all(table is None for table in tables):
        return
    for plane, table in zip(planes, tables, strict=True):
        if table is not None:
            cv2.LUT(plane, table.astype(np.uint8), dst=plane)
    cv2.merge(planes, dst=image)


def _stretch(plane: np.ndarray) -> np.ndarray | None:
    """Table from the lowest value to 0 and the highest to 255; None where it would change nothing."""
    low, high = int(plane.min()), int(plane.max())
    if high <= low or (low, high) == (0, 255):
        return None
    scale = 255.0 / (high - low)
    return np.clip(_VALUES * scale + -low * scale, 0, 255)


def _flatten(plane: np.ndarray) -> np.ndarray | None:
    """PIL's integer equalisation table; None for too few pixels besides those of the highest value."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    step = (plane.size - counts[counts.nonzero()[0][-1]]) // 255
    return np.minimum((step // 2 + counts.cumsum() - counts) // step, 255) if step else None


def invert(image: np.ndarray) -> None:
    """255 minus each value (ImageOps.invert). uint8 (H, W, 3), in place."""
    np.invert(image, out=image)


def posterize(image: np.ndarray, bits: int) -> None:
    """Keep the upper `bits` of each value. uint8 (H, W, 3), in place.

    0 bits or fewer give black, where ImageOps.posterize may raise; 8 or more change nothing.
    """
    np.bitwise_and(image, np.uint8(0xFF << 8 - min(bits, 8) & 0xFF), out=image)


def solarize(image: np.ndarray, threshold: int) -> None:
    """Invert the values at or above `threshold`, 0..256 (ImageOps.solarize). uint8 (H, W, 3), in place."""
    _, mask = cv2.threshold(image, threshold - 1, 255, cv2.THRESH_BINARY)
    np.bitwise_xor(image, mask, out=image)


def solarize_add(image: np.ndarray, add: int, threshold: int = 128) -> None:
    """Add `add`, 0..255, to the values below `threshold`, at most to 255 (timm). uint8 (H, W, 3), in place."""
    _, addend = cv2.threshold(image, threshold - 1, add, cv2.THRESH_BINARY_INV)
    cv2.add(image, addend, dst=image)
