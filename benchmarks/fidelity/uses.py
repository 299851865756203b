"""The losses as they are measured: each with what it learns from the teacher, and without what labels teach."""

from dataclasses import dataclass
from typing import Any

from kdpipe.losses import LOSSES, LossConfig, Requirements

# Where a loss has a number for it.
_ALONE: dict[str, dict[str, Any]] = {
    "kd": {"alpha": 1.0},
    "bucket-kd": {"alpha": 1.0},
    "nkd": {"ce": False},
    "scalekd": {"ce": 0.0},
}
# Those that take other targets at another temperature: the papers' on CIFAR.
_HOT: dict[str, tuple[str, dict[str, Any]]] = {
    "kd, T 4": ("kd", {"alpha": 1.0, "temperature": 4.0}),
    "dkd, T 4": ("dkd", {"beta": 8.0, "temperature": 4.0}),
}
# Of the teacher's: what a loss needs, and what of the scene it can't do without.
_NEEDED = ("pooled", "map", "head", "tail")


@dataclass(frozen=True)
class Use:
    """A loss that is measured.

    Attributes:
        name: as in a report.
        config: with as little of the labels as its numbers allow; what is left of them is subtracted.
        usual: with its own defaults.
    """

    name: str
    config: LossConfig
    usual: LossConfig

    @property
    def requirements(self) -> Requirements:
        """Of the teacher."""
        return self.config.requirements

    def lacks(self, lacking: dict[str, str]) -> str | None:
        """Why a teacher that lacks this can't teach it; None if it can."""
        return next(
            (why for name, why in lacking.items() if name in _NEEDED and getattr(self.requirements, name)), None
        )


def uses() -> list[Use]:
    """Every loss that takes something from a teacher."""
    found = []
    for name, loss in LOSSES.items():
        whole = loss.usable
        if LossConfig(name=whole).requirements.targets:
            found.append(Use(name, _config(whole, name, _ALONE.get(name, {})), LossConfig(name=whole)))
    hot = [(shown, *of) for shown, of in _HOT.items()]
    return found + [Use(shown, *2 * (_config(name, name, numbers),)) for shown, name, numbers in hot]


def plain_kd() -> Use:
    """KD at temperature 1."""
    return Use("kd", *2 * (_config("kd", "kd", _ALONE["kd"]),))


def of_bucket(k: int) -> LossConfig:
    """KD with one bucket for the classes beyond the first k."""
    return _config("bucket-kd", "bucket-kd", {**_ALONE["bucket-kd"], "k": k})


def _config(name: str, numbered: str, numbers: dict[str, Any]) -> LossConfig:
    return LossConfig(name=name, **({numbered.replace("-", "_"): numbers} if numbers else {}))
