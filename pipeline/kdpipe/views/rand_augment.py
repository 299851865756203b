"""RandAugment in timm's syntax: what a string means, and which operations a view draws.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019), with
timm's magnitude noise, increasing severities and transform sets (`timm.data.rand_augment_transform`).
"""

import bisect
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kdpipe.views.distributions import normal
from kdpipe.views.draws import DrawStage, uniform, words

_WORDS = 8  # a layer's share of the stream; six are used
_TOP = 10.0  # magnitudes are tenths of an operation's range

_PLAIN = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
_INCREASING = tuple(
    f"{n}Increasing" if n in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness") else n
    for n in _PLAIN
)
# timm's sets by name, with weights.
_SETS: dict[str, dict[str, float]] = {
    "3a": {"SolarizeIncreasing": 1, "Desaturate": 1, "GaussianBlur": 1},
    "3aw": {
        "SolarizeIncreasing": 6, "Desaturate": 6, "GaussianBlur": 6, "Rotate": 3, "ShearX": 2, "ShearY": 2,
        "PosterizeIncreasing": 1, "AutoContrast": 1, "ColorIncreasing": 1, "SharpnessIncreasing": 1,
        "ContrastIncreasing": 1, "BrightnessIncreasing": 1, "Equalize": 1, "Invert": 1,
    },
    "weights": {
        "Rotate": 3, "ShearX": 2, "ShearY": 2, "TranslateXRel": 1, "TranslateYRel": 1, "ColorIncreasing": 0.25,
        "SharpnessIncreasing": 0.25, "AutoContrast": 0.25, "SolarizeIncreasing": 0.05, "SolarizeAdd": 0.05,
        "ContrastIncreasing": 0.05, "BrightnessIncreasing": 0.05, "Equalize": 0.05, "PosterizeIncreasing": 0.05,
        "Invert": 0.05,
    },
}  # fmt: skip
_SYNTAX = "rand-m9-n2-p0.5-mstd0.5-mmax10-inc1-tweights, in any order after rand"


def _signed(most: float) -> Callable[[float, float], float]:
    return lambda level, sign: sign * level * most


def _enhance(level: float, sign: float) -> float:
    return level * 1.8 + 0.1


def _enhance_increasing(level: float, sign: float) -> float:
    return max(0.1, 1.0 + sign * level * 0.9)


# From level (magnitude over 10) and a drawn sign to the operation's argument; what is not here takes none.
_ARGUMENTS: dict[str, Callable[[float, float], float]] = {
    "Rotate": _signed(30.0),
    "ShearX": _signed(0.3),
    "ShearY": _signed(0.3),
    "TranslateXRel": _signed(0.45),
    "TranslateYRel": _signed(0.45),
    "Posterize": lambda level, _: int(level * 4),
    "PosterizeIncreasing": lambda level, _: max(0, 4 - int(level * 4)),
    "Solarize": lambda level, _: min(256, int(level * 256)),
    "SolarizeIncreasing": lambda level, _: 256 - min(256, int(level * 256)),
    "SolarizeAdd": lambda level, _: min(128, int(level * 110)),
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), _enhance),
    **{f"{n}Increasing": _enhance_increasing for n in ("Color", "Contrast", "Brightness", "Sharpness")},
    "Desaturate": lambda level, _: min(1.0, 0.5 + 0.5 * level),
    "GaussianBlur": lambda level, _: min(2.0, 0.1 + 1.9 * level),
}


@dataclass(frozen=True)
class RandAugmentSpec:
    """The settings of a configuration string.

    Attributes:
        magnitude: m. layers: n. prob: p, of each layer being applied.
        std: mstd, of the magnitude; above 100 it is uniform from 0 to m. top: mmax, its upper bound.
        names: operations to choose from. weights: their shares, chosen without repetition; None for equal
            ones, chosen with repetition.
    """

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    std: float = 0.0
    top: float = _TOP
    names: tuple[str, ...] = _PLAIN
    weights: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> "RandAugmentSpec":
        """Read timm's syntax; strict where timm guesses.

        Raises:
            ValueError: a part has no meaning in timm, or comes twice.
        """
        first, *sections = text.split("-")
        if first != "rand":
            raise ValueError(f"auto_augment must be RandAugment ({_SYNTAX}), found {text}")
        given: dict[str, str] = {}
        for section in sections:
            number = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d{1,4}(?:\.\d{1,9})?)", section)
            key, value = number.groups() if number else (section[:1], section[1:])
            if key in given or not (number or (key == "t" and value in _SETS)):
                raise ValueError(f"auto_augment: {section!r} in {text}; allowed: {_SYNTAX}, once each")
            given[key] = value
        whole = {k: int(given[k]) for k in ("m", "n", "mmax", "inc") if _whole(text, given, k)}
        chosen = _SETS.get(given.get("t", ""))
        spec = cls(
            magnitude=whole.get("m", 10),
            layers=whole.get("n", 2),
            prob=float(given.get("p", 0.5)),
            std=float(given.get("mstd", 0)),
            top=float(whole.get("mmax", 0) or _TOP),
            names=tuple(chosen) if chosen else _INCREASING if whole.get("inc") else _PLAIN,
            weights=tuple(chosen.values()) if chosen and len(set(chosen.values())) > 1 else None,
        )
        most = len(spec.names) if spec.weights else 100
        if not 1 <= spec.layers <= most or spec.prob > 1:
            raise ValueError(f"auto_augment: n must be 1 to {most} and p at most 1, found {text}")
        return spec


def _whole(text: str, given: dict[str, str], key: str) -> bool:
    if key in given and "." in given[key]:
        raise ValueError(f"auto_augment: {key} must be a whole number, found {given[key]} in {text}")
    return key in given


class Operation(NamedTuple):
    """One operation of a view: timm's name, its argument (None if it takes none), how warps interpolate."""

    name: str
    argument: float | None
    interpolation: str


class RandAugmentDraws:
    """The operations of one view of several samples."""

    def __init__(self, spec: RandAugmentSpec, interpolation: str, hashes: list[bytes]) -> None:
        u = uniform(words(hashes, DrawStage.RAND_AUGMENT, _WORDS * spec.layers)).reshape(
            len(hashes), spec.layers, _WORDS
        )
        self._spec, self._interpolation = spec, interpolation
        self._chosen, self._applied = u[..., 0], u[..., 1] < spec.prob
        if spec.std > 100:
            magnitudes = spec.magnitude * u[..., 2]
        else:
            magnitudes = spec.magnitude + spec.std * normal(u[..., 2], u[..., 3])
        self._levels = (np.clip(magnitudes, 0, spec.top) / _TOP).tolist()
        self._signs = np.where(u[..., 4] < 0.5, -1.0, 1.0).tolist()
        self._bilinear = u[..., 5] < 0.5

    def operations(self, i: int) -> list[Operation]:
        """Those of sample `i`, in order of application."""
        found = []
        for layer, name in enumerate(self._names(i)):
            if not self._applied[i, layer]:
                continue
            argue = _ARGUMENTS.get(name)
            argument = argue(self._levels[i][layer], self._signs[i][layer]) if argue else None
            kind = self._interpolation
            if kind == "random":
                kind = "bilinear" if self._bilinear[i, layer] else "bicubic"
            found.append(Operation(name, argument, kind))
        return found

    def _names(self, i: int) -> list[str]:
        names, chosen = self._spec.names, self._chosen[i].tolist()
        if self._spec.weights is None:
            return [names[int(u * len(names))] for u in chosen]
        # Without repetition: each layer draws among those that are left.
        left, weights, picked = list(names), list(self._spec.weights), []
        for u in chosen:
            edges = list(itertools.accumulate(weights))
            k = min(bisect.bisect_right(edges, u * edges[-1]), len(left) - 1)
            picked.append(left.pop(k))
            weights.pop(k)
        return picked
