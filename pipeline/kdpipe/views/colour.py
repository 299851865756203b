"""Which operations change a view's colours: RandAugment or jitter, then greyscale and blur, in timm's order."""

import itertools

import numpy as np

from kdpipe.views import ops
from kdpipe.views.draws import DrawStage, below, uniform, words
from kdpipe.views.policy import ViewsConfig
from kdpipe.views.rand_augment import Operation, RandAugmentDraws, RandAugmentSpec

_ORDERS = tuple(itertools.permutations(range(4)))
_JITTER = ("Brightness", "Contrast", "Color", "Hue")
_OPS = ops.RAND_OPS | {
    "Hue": lambda image, turn, *_: ops.hue(image, turn),
    "Grayscale": lambda image, *_: ops.greyscale(image),
    "Blur": lambda image, sigma, *_: ops.gaussian_blur(image, sigma),
}
_SIGMA = (0.1, 2.0)  # of timm's gaussian_blur_prob


class ColourDraws:
    """Draws of one view of several samples. Each kind has a stage of its own and draws whether used or not."""

    def __init__(self, config: ViewsConfig, hashes: list[bytes]) -> None:
        self._fill = config.fill
        self._rand: RandAugmentDraws | None = None
        if config.auto_augment is not None:
            spec = RandAugmentSpec.parse(config.auto_augment)
            self._rand = RandAugmentDraws(spec, config.interpolation, hashes)
        self._jitter: list[list[tuple[int, float]]] | None = None
        if config.jitter is not None:
            self._jitter = _jitters(config.jitter, config.color_jitter_prob, hashes)
        self._gray = _coins(hashes, DrawStage.GRAYSCALE, config.grayscale_prob)
        self._blur = _coins(hashes, DrawStage.BLUR, config.gaussian_blur_prob)

    def operations(self, i: int) -> list[Operation]:
        """What happens to sample `i`, by name and argument, in order."""
        found = list(self._rand.operations(i)) if self._rand is not None else []
        if self._jitter is not None:
            found += [Operation(_JITTER[kind], factor, "") for kind, factor in self._jitter[i]]
        if self._gray is not None and self._gray[0][i]:
            found.append(Operation("Grayscale", None, ""))
        if self._blur is not None and self._blur[0][i]:
            found.append(Operation("Blur", _SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * self._blur[1][i], ""))
        return found

    def apply(self, i: int, image: np.ndarray) -> None:
        """Change sample `i`, uint8 (S, S, 3), in place."""
        for name, argument, interpolation in self.operations(i):
            _OPS[name](image, argument, interpolation, self._fill)


def _jitters(
    strengths: tuple[float, float, float, float], prob: float | None, hashes: list[bytes]
) -> list[list[tuple[int, float]]]:
    """torchvision's ColorJitter: (kind, factor) of each sample, in a random order of the four kinds."""
    u = uniform(words(hashes, DrawStage.JITTER, 6)).tolist()
    found = []
    for applied, order, *factors in u:
        chosen = []
        for kind in _ORDERS[below(order, len(_ORDERS))]:
            strength, centre = strengths[kind], 0.0 if kind == 3 else 1.0
            low = -strength if kind == 3 else max(0.0, centre - strength)
            if strength > 0:
                chosen.append((kind, low + (centre + strength - low) * factors[kind]))
        found.append(chosen if prob is None or applied < prob else [])
    return found


def _coins(hashes: list[bytes], stage: int, prob: float) -> tuple[list[bool], list[float]] | None:
    """Whether it happens, and one more uniform number, by sample; None where it never does."""
    if prob == 0:
        return None
    u = uniform(words(hashes, stage, 2))
    return (u[:, 0] < prob).tolist(), u[:, 1].tolist()
