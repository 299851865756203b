"""The losses as they are measured: each with its term of the teacher, without cross entropy to the labels."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.losses import LOSSES, LossConfig, Requirements

# Hyperparameters that leave the labels' term out, of the losses that have such ones.
_TEACHER_ONLY: dict[str, dict[str, Any]] = {
    "kd": {"alpha": 1.0},
    "bucket-kd": {"alpha": 1.0},
    "nkd": {"ce": False},
    "scalekd": {"ce": 0.0},
}
# At another temperature they need all classes: the papers' settings on CIFAR.
_HOT: dict[str, tuple[str, dict[str, Any]]] = {
    "kd, T 4": ("kd", {"alpha": 1.0, "temperature": 4.0}),
    "dkd, T 4": ("dkd", {"beta": 8.0, "temperature": 4.0}),
}
_PARTS = ("pooled", "map", "head", "tail")


@dataclass(frozen=True)
class LossCase:
    """A loss that is measured.

    Attributes:
        name: as in a report.
        config: with as little of the labels as its hyperparameters allow; what is left of them is subtracted.
        usual: with its own defaults.
    """

    name: str
    config: LossConfig
    usual: LossConfig

    @property
    def requirements(self) -> Requirements:
        """What it needs of the teacher."""
        return self.config.requirements

    def missing(self, lacks: dict[str, str]) -> str | None:
        """Why it can't be measured with a teacher that lacks these parts; None if it can."""
        return next((why for name, why in lacks.items() if name in _PARTS and getattr(self.requirements, name)), None)


def loss_cases(only: Collection[str] = ()) -> list[LossCase]:
    """The losses that learn from a teacher.

    Args:
        only: names of losses; all by default.

    Raises:
        ConfigError: no loss has such a name, or it doesn't learn from a teacher.
    """
    found = []
    for name, loss in LOSSES.items():
        whole = loss.usable
        if LossConfig(name=whole).requirements.targets:
            found.append(LossCase(name, _config(whole, name, _TEACHER_ONLY.get(name, {})), LossConfig(name=whole)))
    found += [
        LossCase(shown, *2 * (_config(name, name, hyperparameters),)) for shown, (name, hyperparameters) in _HOT.items()
    ]
    names = [case.name for case in found]
    for name in only:
        if name not in names:
            raise ConfigError("not a loss with a teacher", where="--loss", found=name, allowed="; ".join(names))
    return [case for case in found if not only or case.name in only]


def bucket_config(k: int) -> LossConfig:
    """KD with one bucket for the classes beyond the first k."""
    return _config("bucket-kd", "bucket-kd", {**_TEACHER_ONLY["bucket-kd"], "k": k})


def _config(name: str, section: str, hyperparameters: dict[str, Any]) -> LossConfig:
    return LossConfig(name=name, **({section.replace("-", "_"): hyperparameters} if hyperparameters else {}))
