"""Image operations: what augmentation policies are made of, each in its fastest exact form.

Every operation takes a C-contiguous uint8 (H, W, 3) RGB array, such as a row of a batch buffer, of any size from
1 x 1 up, changes it in place and returns None. The result is a function of the arguments alone. What each
computes is what PIL computes for timm, or torchvision on a PIL image, byte for byte unless its docstring
gives the difference.
"""

import cv2

from kdpipe.views.ops.colour import brightness, color, contrast, greyscale, hue
from kdpipe.views.ops.filters import box_blur, gaussian_blur, sharpness
from kdpipe.views.ops.levels import autocontrast, equalize, invert, posterize, solarize, solarize_add
from kdpipe.views.ops.named import RAND_OPS
from kdpipe.views.ops.warps import affine, rotate, shear_x, shear_y, translate_x, translate_y

# The caller spreads samples over threads; OpenCV's own would wake and wait at every call on a small image.
# IPP is left as it is: none of the calls made here uses it (same bytes and times with it off), and turning
# it off holds for one thread only while making cv2.flip eight times slower for the rest of that thread.
cv2.setNumThreads(1)

__all__ = [
    "RAND_OPS",
    "affine",
    "autocontrast",
    "box_blur",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "gaussian_blur",
    "greyscale",
    "hue",
    "invert",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "solarize_add",
    "translate_x",
    "translate_y",
]
