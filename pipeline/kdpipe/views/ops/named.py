"""timm's names of operations: what `rand-...` policies draw from."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kdpipe.views.ops import colour, filters, levels, warps
from kdpipe.views.ops.warps import Fill

Op = Callable[[np.ndarray, Any, str, Fill], None]


def _bare(op: Callable[[np.ndarray], None]) -> Op:
    return lambda image, argument, interpolation, fill: op(image)


def _plain(op: Callable[[np.ndarray, Any], None]) -> Op:
    return lambda image, argument, interpolation, fill: op(image, argument)


def _desaturate(image: np.ndarray, argument: float) -> None:
    colour.color(image, min(1.0, max(0.0, 1.0 - argument)))


# Called as op(image, argument, interpolation, fill). The argument is what timm passes to the function of the
# same name in its NAME_TO_OP: degrees, a factor, bits, a threshold, an addend or a share; None for the first three.
RAND_OPS: dict[str, Op] = {
    "AutoContrast": _bare(levels.autocontrast),
    "Equalize": _bare(levels.equalize),
    "Invert": _bare(levels.invert),
    "Rotate": warps.rotate,
    "Posterize": _plain(levels.posterize),
    "PosterizeIncreasing": _plain(levels.posterize),
    "Solarize": _plain(levels.solarize),
    "SolarizeIncreasing": _plain(levels.solarize),
    "SolarizeAdd": _plain(levels.solarize_add),
    "Color": _plain(colour.color),
    "ColorIncreasing": _plain(colour.color),
    "Contrast": _plain(colour.contrast),
    "ContrastIncreasing": _plain(colour.contrast),
    "Brightness": _plain(colour.brightness),
    "BrightnessIncreasing": _plain(colour.brightness),
    "Sharpness": _plain(filters.sharpness),
    "SharpnessIncreasing": _plain(filters.sharpness),
    "ShearX": warps.shear_x,
    "ShearY": warps.shear_y,
    "TranslateXRel": warps.translate_x,
    "TranslateYRel": warps.translate_y,
    "Desaturate": _plain(_desaturate),
    "GaussianBlur": _plain(filters.box_blur),
}
