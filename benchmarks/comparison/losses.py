"""The rows of the table: each loss with its default hyperparameters, and with those that papers use on CIFAR."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from kdpipe.errors import ConfigError
from kdpipe.losses import LOSSES, LossConfig

ALONE = "labels alone"
_BASELINE = "none"
# DKD's warm-up on CIFAR: 20 of 240 epochs.
_WARMUP = 20 / 240


@dataclass(frozen=True)
class Row:
    """A loss with its hyperparameters."""

    label: str
    loss: LossConfig

    @property
    def hyperparameters(self) -> str:
        """As text: `temperature 4, alpha 0.9`; without a weight of 1 and smoothing of 0."""
        configs = [self.loss.hyperparameters(loss.name).model_dump() for loss in self.loss.losses]
        found = [(name, value) for config in configs for name, value in config.items() if _shown(name, value)]
        return ", ".join(f"{name} {value:g}" for name, value in found)


def rows(epochs: int, only: Collection[str] = ()) -> list[Row]:
    """The baseline and the losses in the order of LOSSES.

    Args:
        epochs: of a run, for hyperparameters that are epochs.
        only: names of losses to keep; all by default. The baseline is always there.

    Raises:
        ConfigError: there is no such loss.
    """
    for name in only:
        if name not in LOSSES:
            raise ConfigError("unknown loss", where="--only", found=name, allowed=", ".join(LOSSES))
    found = []
    for name, loss in LOSSES.items():
        if only and name not in {*only, _BASELINE}:
            continue
        use = loss.usable
        found.append(Row(ALONE if name == _BASELINE else use, LossConfig(name=use)))
        if given := _on_cifar(epochs).get(name):
            found.append(Row(f"{use}, CIFAR", LossConfig.model_validate({"name": use, name: given})))
    return found


def _on_cifar(epochs: int) -> dict[str, dict[str, float]]:
    return {
        "kd": {"temperature": 4.0, "alpha": 0.9},
        "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": round(_WARMUP * epochs, 3)},
    }


def _shown(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (name, value) not in {("weight", 1), ("label_smoothing", 0)}
