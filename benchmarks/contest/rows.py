"""The rows of the table: every objective with its default numbers, and with those that papers use on CIFAR."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.losses import OBJECTIVES, LossConfig

ALONE = "labels alone"
_BASELINE = "none"
# DKD's warm-up on CIFAR: 20 of 240 epochs.
_WARMUP = 20 / 240


@dataclass(frozen=True)
class Row:
    """An objective with its numbers."""

    label: str
    objective: LossConfig

    @property
    def numbers(self) -> str:
        """As text: `temperature 4, alpha 0.9`; without those that are idle, a weight of 1 and no smoothing."""
        configs = [self.objective.hyperparameters(objective.name).model_dump() for objective in self.objective.objectives]
        told = [(name, value) for config in configs for name, value in config.items() if _tells(name, value)]
        return ", ".join(f"{name} {value:g}" for name, value in told)


def rows(epochs: int, only: Collection[str] = ()) -> list[Row]:
    """The baseline and the objectives in the order of OBJECTIVES.

    Args:
        epochs: of a run, for numbers that are epochs.
        only: names of objectives to keep; all by default. The baseline is always there.

    Raises:
        ConfigError: there is no such objective.
    """
    for name in only:
        if name not in OBJECTIVES:
            raise ConfigError("unknown objective", where="--only", found=name, allowed=", ".join(OBJECTIVES))
    found = []
    for name, objective in OBJECTIVES.items():
        if only and name not in {*only, _BASELINE}:
            continue
        use = objective.usable()
        found.append(Row(ALONE if name == _BASELINE else use, LossConfig(name=use)))
        if numbers := _on_cifar(epochs).get(name):
            found.append(Row(f"{use}, CIFAR", LossConfig.model_validate({"name": use, name: numbers})))
    return found


def _on_cifar(epochs: int) -> dict[str, dict[str, float]]:
    return {
        "kd": {"temperature": 4.0, "alpha": 0.9},
        "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": round(_WARMUP * epochs, 3)},
    }


def _tells(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name, value) not in {("weight", 1), ("label_smoothing", 0)}
