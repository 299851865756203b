"""Pixels of a view: crop, resize, flip, colours, straight into the row of a batch buffer; then mixing and erasing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdpipe.errors import ViewError
from kdpipe.views.colour import ColourDraws
from kdpipe.views.draws import FIVE_CROP, View, view_streams
from kdpipe.views.erasing import ErasingDraws
from kdpipe.views.geometry import Crop, Geometry, Whole
from kdpipe.views.mixing import Mix, MixingDraws
from kdpipe.views.policy import Interpolation, ViewsConfig
from kdpipe.views.resize import flip, resize, resize_whole


class BlockViews:
    """One view of the samples of one block: their draws now, their pixels on request.

    A view is made in three steps, so that each image is decoded once: `render` its own pixels, `mix` it with
    its partner's where it has one, and `erase` boxes of the result.

    Args:
        config: the policy.
        shard: the shard's file name.
        keys: the samples' keys; row `i` below is the sample of `keys[i]`. Mixing pairs these rows, so
            they must be the whole block's where the policy mixes.
        view: a number >= 0; or an evaluation view, which draws nothing: "center", "top-left", ...

    Attributes:
        mixing: the block's pairs, None where nothing is mixed.
    """

    def __init__(self, config: ViewsConfig, shard: str, keys: Sequence[str], view: View) -> None:
        self._config, self._view = config, view
        self.mixing: MixingDraws | None = None
        self._geometry: Geometry | None = None
        self._colour: ColourDraws | None = None
        self._erasing: ErasingDraws | None = None
        if view in FIVE_CROP:
            return
        if not isinstance(view, int) or view < 0:
            raise ViewError("no such view", found=view, allowed=f"a number >= 0, or {', '.join(map(str, FIVE_CROP))}")
        hashes = view_streams(config.seed, shard, keys, view)
        self._geometry = Geometry(config, hashes)
        self._colour = ColourDraws(config, hashes)
        if config.mixes:
            self.mixing = MixingDraws(config, shard, keys, view)
        if config.re_prob > 0:
            self._erasing = ErasingDraws(config, hashes)

    def render(self, i: int, image: np.ndarray, out: np.ndarray) -> None:
        """Render sample `i` by itself from its decoded `image`, uint8 (H, W, 3), into `out`, uint8 (S, S, 3)."""
        if self._geometry is None or self._colour is None:
            _evaluation(image, out, self._config, self._view)
            return
        height, width = image.shape[:2]
        box, interpolation = self._geometry.box(i, height, width, len(out)), self._geometry.interpolation(i)
        if isinstance(box, Crop):
            resize(image[box.top : box.top + box.height, box.left : box.left + box.width], out, interpolation)
        else:
            resize_whole(image, box, out, interpolation)
        mirrored, upset = self._geometry.flips(i)
        if mirrored:
            flip(out, 1)
        if upset:
            flip(out, 0)
        self._colour.apply(i, out)

    def partner(self, i: int) -> int | None:
        """The row that sample `i` is mixed with, None if it is not."""
        return None if self.mixing is None or self.mixing.lam[i] == 1 else int(self.mixing.partner[i])

    def mix(self, i: int, own: np.ndarray, other: np.ndarray) -> None:
        """Mix sample `i`'s rendering and its partner's, uint8 (S, S, 3) each, both in place.

        Call it once a pair, for either of the two: each row is always its own first summand.
        """
        mix = None if self.mixing is None else self.mixing.of(i)
        if mix is not None:
            mix.apply(own, other)

    def erase(self, i: int, image: np.ndarray) -> np.ndarray | None:
        """Write sample `i`'s noise into its view in place; its boxes, see `Erased`; None where none are drawn."""
        return None if self._erasing is None else self._erasing.erase(i, image)

    def draws(self, i: int, height: int, width: int, size: int) -> dict[str, Any]:
        """What was drawn for sample `i`, an image of `height` x `width` pixels rendered at `size`; JSON-able."""
        if self._geometry is None or self._colour is None:
            return {}
        mirrored, upset = self._geometry.flips(i)
        mix: Mix | None = None if self.mixing is None else self.mixing.of(i)
        boxes = [] if self._erasing is None else self._erasing.boxes(i, size).tolist()
        return {
            "box": vars(self._geometry.box(i, height, width, size)),
            "interpolation": self._geometry.interpolation(i),
            "hflip": mirrored,
            "vflip": upset,
            "operations": [list(operation) for operation in self._colour.operations(i)],
            "partner": self.partner(i),
            "lam": 1.0 if mix is None else mix.lam,
            "cutmix": None if mix is None else mix.pixels(size),
            "erased": [b for b in boxes if b[2]],
        }


def render_view(
    config: ViewsConfig,
    shard: str,
    key: str,
    view: View,
    image: np.ndarray,
    size: int,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One view of one sample, unmixed: uint8 (size, size, 3). A pure function of its arguments.

    Raises:
        ViewError: the policy mixes; such a view takes its whole block, see `views.block`.
    """
    block = BlockViews(config, shard, [key], view)
    if block.mixing is not None:
        raise ViewError("a mixed view needs its partner", where=f"{shard} key {key}", do="Render its block")
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    block.render(0, image, out)
    block.erase(0, out)
    return out


def _evaluation(image: np.ndarray, out: np.ndarray, config: ViewsConfig, view: View) -> None:
    """timm's evaluation transform: the shorter side to floor(S / crop_pct), then an S x S corner or the centre."""
    height, width = image.shape[:2]
    size = out.shape[0]
    short = math.floor(size / config.crop_pct)
    if height <= width:
        h, w = short, int(short * width / height)
    else:
        h, w = int(short * height / width), short
    # `random` is for training; timm evaluates with the model's own interpolation, which is bicubic mostly.
    interpolation: Interpolation = "bicubic" if config.interpolation == "random" else config.interpolation
    if view == "center":
        # torchvision's CenterCrop rounds half to even, and so do we.
        top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    else:
        top, left = (0 if "top" in str(view) else h - size), (0 if "left" in str(view) else w - size)
    resize_whole(image, Whole(h, w, top, left), out, interpolation)
