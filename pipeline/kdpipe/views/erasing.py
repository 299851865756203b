"""Random erasing (Zhong et al. 2017), as timm's `RandomErasing` does it: boxes of normalised noise.

timm writes noise into the normalised image, where uint8 can't follow. Here a box's bytes are no colours but
numbers of noise: each stands for one of 256 equally likely values of a normal distribution, put in place after
normalisation. So a view stays uint8 until it is on its device, and what is drawn there is the same everywhere.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kdpipe.views.draws import DrawStage, below, uniform, words
from kdpipe.views.policy import ViewsConfig

_ATTEMPTS = 10
_WORDS = 2 * _ATTEMPTS + 2  # a box's: areas and aspects, then the place


@dataclass(frozen=True)
class Erased:
    """Where n views of S x S pixels are erased.

    Attributes:
        boxes: int16 (n, count, 4): top, left, height, width in pixels; height 0 for none.
        noise: whether the bytes there number values of noise; else they mean 0 (the mean colour).
    """

    boxes: np.ndarray
    noise: bool

    def __getitem__(self, rows: slice | list[int] | np.ndarray) -> "Erased":
        return Erased(self.boxes[rows], self.noise)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, config: ViewsConfig, boxes: "Sequence[np.ndarray | None]") -> "Erased | None":
        """Put the boxes of some views together; None where the policy or the view (the center) erases nothing."""
        if config.re_prob == 0 or any(b is None for b in boxes):
            return None
        return cls(np.array(boxes, np.int16).reshape(-1, config.re_count, 4), config.re_mode != "const")


def noise_values() -> np.ndarray:
    """What the 256 bytes of noise stand for: float32 (256,), mean 0, variance 1."""
    values = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    return (values / values.std()).astype(np.float32)


class ErasingDraws:
    """Draws of one view of several samples."""

    def __init__(self, config: ViewsConfig, hashes: list[bytes]) -> None:
        self._config, self._hashes = config, hashes
        count = config.re_count
        u = uniform(words(hashes, DrawStage.ERASING, 2 + _WORDS * count))
        self._happens = (u[:, 0] < config.re_prob).tolist()
        self._counts = [1 + below(x, count) for x in u[:, 1].tolist()]
        self._u = u[:, 2:].reshape(len(hashes), count, _WORDS)

    def boxes(self, i: int, size: int) -> np.ndarray:
        """Where sample `i` is erased at render size `size`: int16 (re_count, 4); see `Erased`."""
        config, boxes = self._config, np.zeros((self._config.re_count, 4), np.int16)
        if not self._happens[i]:
            return boxes
        (low, high), (flat, tall) = config.re_area, (math.log(x) for x in config.re_aspect)
        for k in range(self._counts[i]):
            *shapes, down, right = self._u[i, k].tolist()
            for a, r in zip(shapes[::2], shapes[1::2], strict=True):
                area = (low + (high - low) * a) * size * size / self._counts[i]
                aspect = math.exp(flat + (tall - flat) * r)
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h < size and w < size:
                    boxes[k] = below(down, size - h + 1), below(right, size - w + 1), h, w
                    break
        return boxes

    def erase(self, i: int, image: np.ndarray) -> np.ndarray:
        """Write sample `i`'s noise into its view, uint8 (S, S, 3), in place; returns its boxes."""
        boxes, mode = self.boxes(i, len(image)), self._config.re_mode
        if not self._happens[i]:
            return boxes
        for k, (top, left, h, w) in enumerate(boxes.tolist()):
            if h == 0 or w == 0:
                continue
            box = image[top : top + h, left : left + w]
            if mode == "const":
                box[:] = 0
                continue
            # SHAKE-128 of the stream's name: a standard, and four times as fast as Philox in NumPy.
            stream = hashlib.shake_128(self._hashes[i] + bytes([DrawStage.ERASING, k]))
            shape = (h, w, 3) if mode == "pixel" else (3,)
            box[:] = np.frombuffer(stream.digest(math.prod(shape)), np.uint8).reshape(shape)
        return boxes
