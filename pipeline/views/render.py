"""Pixels of a view: crop, resize, flip, straight into the row of a batch buffer.

Everything is uint8, channels last. The resize is ATen's antialiased uint8 kernel, five times as fast as
PIL's; it is called with `out=` because adding a batch dimension to a cropped view otherwise returns channels
first and copies. Torch's own threads are not used: the caller spreads samples over threads.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.errors import ViewError
from pipeline.views.draws import View
from pipeline.views.geometry import Crop, Geometry
from pipeline.views.policy import ViewsConfig

_RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


class BlockViews:
    """One view of the samples of one block: their draws now, their pixels when asked for.

    Args:
        config: the policy.
        shard: the shard's file name.
        keys: the samples' keys; row `i` below is the sample of `keys[i]`.
        view: a number >= 0, or "center" for the evaluation crop, which draws nothing.
    """

    def __init__(self, config: ViewsConfig, shard: str, keys: Sequence[str], view: View) -> None:
        if view != "center" and (not isinstance(view, int) or view < 0):
            raise ViewError("no such view", found=view, allowed="a number >= 0, or 'center'")
        self._config = config
        self._geometry = None if view == "center" else Geometry(config, shard, keys, int(view))

    def crop(self, i: int, height: int, width: int) -> Crop | None:
        """The box of sample `i`; None for the `center` view, whose box follows from the render size."""
        return None if self._geometry is None else self._geometry.crop(i, height, width)

    def render(self, i: int, image: np.ndarray, out: np.ndarray) -> None:
        """Render sample `i` from its decoded `image`, uint8 (H, W, 3), into `out`, uint8 (S, S, 3)."""
        crop = self.crop(i, *image.shape[:2])
        if crop is None:
            _center(image, out, self._config)
            return
        box = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        _resize(box, out, self._config.interpolation)
        if crop.flip:
            _mirror(out)


def render_view(
    config: ViewsConfig,
    shard: str,
    key: str,
    view: View,
    image: np.ndarray,
    size: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One view of one sample: uint8 (size, size, 3). A pure function of its arguments."""
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    BlockViews(config, shard, [key], view).render(0, image, out)
    return out


def _resize(image: np.ndarray, out: np.ndarray, interpolation: str) -> None:
    """Antialiased resize of uint8 (h, w, 3), any strides, into uint8 (H, W, 3)."""
    if image.shape == out.shape:
        out[:] = image
        return
    source = torch.from_numpy(image).permute(2, 0, 1)[None]
    target = torch.from_numpy(out).permute(2, 0, 1)[None]
    _RESIZE[interpolation](source, list(out.shape[:2]), False, None, None, out=target)


def _mirror(image: np.ndarray) -> None:
    """Flip uint8 (H, W, 3) left to right in place: ten times as fast as NumPy's reversed copy.

    In strips below the size at which ATen would start threads of its own, which cost more than the flip.
    """
    rows = max(1, 32_000 // (3 * image.shape[1]))
    for strip in torch.from_numpy(image).split(rows):
        strip.copy_(strip.flip(1))


def _center(image: np.ndarray, out: np.ndarray, config: ViewsConfig) -> None:
    """timm's evaluation transform: the shorter side to floor(S / crop_pct), then the centre S x S."""
    height, width = image.shape[:2]
    size = out.shape[0]
    short = math.floor(size / config.crop_pct)
    if height <= width:
        h, w = short, int(short * width / height)
    else:
        h, w = int(short * height / width), short
    whole = np.empty((h, w, 3), np.uint8)
    _resize(image, whole, config.interpolation)
    # torchvision's CenterCrop rounds half to even, and so do we.
    top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    out[:] = whole[top : top + size, left : left + size]
