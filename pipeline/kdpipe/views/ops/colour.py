"""Brightness, contrast, saturation, hue and greyscale, as PIL's ImageEnhance and torchvision on PIL do them.

All equal PIL byte for byte. Where PIL's own code is used, it is on buffers that it maps instead of copying:
PIL stores colours four bytes apart, so three-byte pixels are widened first, or go in as a grey image of
three times the width, which is all the same to a blend.
"""

import cv2
import numpy as np
from PIL import Image


def brightness(image: np.ndarray, f: float) -> None:
    """Blend with black by `f` >= 0; 1 changes nothing (ImageEnhance.Brightness). uint8 (H, W, 3), in place."""
    cv2.LUT(image, _from(0, f), dst=image)


def contrast(image: np.ndarray, f: float) -> None:
    """Blend with the mean grey by `f` >= 0; 1 changes nothing (ImageEnhance.Contrast). uint8 (H, W, 3), in place."""
    grey = _grey(image)
    mean = int(cv2.sumElems(grey)[0] / grey.size + 0.5)
    cv2.LUT(image, _from(mean, f), dst=image)


def color(image: np.ndarray, f: float) -> None:
    """Blend with the image's greys by `f` >= 0; 1 changes nothing. uint8 (H, W, 3), in place.

    ImageEnhance.Color, which is torchvision's adjust_saturation on a PIL image.
    """
    blend(image, cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB), f)


def greyscale(image: np.ndarray) -> None:
    """PIL's luma in all three channels (torchvision's RandomGrayscale). uint8 (H, W, 3), in place."""
    cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB, dst=image)


def hue(image: np.ndarray, f: float) -> None:
    """Turn the hue by `f` of a circle, -.5 .. .5 (torchvision's adjust_hue on PIL). uint8 (H, W, 3), in place.

    Through PIL: OpenCV's 8-bit hue is another by up to two steps, which makes up to 13 levels of a colour in
    a quarter of the values. The round trip through HSV happens even at 0, as it does in torchvision.
    """
    size = image.shape[1], image.shape[0]
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    # Whole steps, cut towards zero, on a byte that wraps around.
    hsv[..., 0] += np.uint8(int(f * 255) % 256)
    image[:] = np.asarray(Image.frombytes("HSV", size, hsv.tobytes()).convert("RGB"))


def blend(image: np.ndarray, base: np.ndarray, f: float) -> None:
    """base + f (image - base), clipped, fractions dropped, into `image` (PIL's Image.blend). Both uint8 (H, W, 3).

    OpenCV's weighted sum rounds instead. It gives the same bytes in a third of the time if the sum is first
    lowered by half of the highest fraction that can occur, and if that leaves a gap for float32's errors
    (below 2**-14 each way up to f = 2). All factors but one in twenty-five do; for the others PIL blends.
    """
    steps = np.float32(f) * np.arange(-255, 256, dtype=np.float32)
    highest = float((steps - np.floor(steps)).max())
    if f <= 2 and highest < 1 - 2**-13:
        cv2.addWeighted(image, f, base, 1 - f, -highest / 2, dst=image)
    else:
        blended = Image.blend(_mapped(base), _mapped(image), f)
        image[:] = np.frombuffer(blended.tobytes(), np.uint8).reshape(image.shape)


def _mapped(image: np.ndarray) -> Image.Image:
    """A PIL image of the bytes of uint8 (H, W, 3), seen as greys of H x 3 W; shares the memory."""
    return Image.frombuffer("L", (image.shape[1] * 3, image.shape[0]), image, "raw", "L", 0, 1)


def _from(base: int, f: float) -> np.ndarray:
    """Table of what `blend` makes of each value and a constant: uint8 (256,). In float32, as PIL computes."""
    values, start = np.arange(256, dtype=np.float32), np.float32(base)
    return np.clip(start + np.float32(f) * (values - start), 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """PIL's convert("L"): uint8 (H, W). OpenCV's luma is one off in a pixel of some hundreds."""
    wide = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    size = image.shape[1], image.shape[0]
    return np.asarray(Image.frombuffer("RGBX", size, wide, "raw", "RGBX", 0, 1).convert("L"))
