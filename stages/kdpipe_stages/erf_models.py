"""The models of `kdpipe erf`: from the arguments of the command line to measured receptive fields."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.erf import SHARES, ReceptiveField, Square, log_scale, squares
from kdpipe.errors import ConfigError
from kdpipe.models import ModelConfig, is_factory, read_header
from kdpipe.models.build import build
from kdpipe.teacher import TeacherConfig, resolve_device
from kdpipe.views import Normalize

RANDOM = "random weights"
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


class Subject:
    """A model under measurement.

    Args:
        label: its argument on the command line.
        config: which model, see `parse_model`.
        run: `device` and `channels_last` count.
        num_classes: where neither the model nor its weights have them.

    Attributes:
        title: the architecture, and where its weights are from.
        field: the images so far.
    """

    def __init__(self, label: str, config: ModelConfig, run: TeacherConfig, num_classes: int | None) -> None:
        # Random weights are the same every time, whatever other models there are.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = build(config, num_classes=num_classes)
        self.label = label
        if config.weights or is_factory(built.name):
            self.weights = config.weights or "its factory's weights"
        else:
            self.weights = "published weights" if config.pretrained else RANDOM
        self.title = (built.name, self.weights)
        self._device = resolve_device(run.device)
        layout = torch.channels_last if run.channels_last else torch.contiguous_format
        module = built.module.to(self._device, memory_format=layout)  # type: ignore[call-overload]
        self._normalize = Normalize(built.mean, built.std, run.channels_last).to(self._device)
        self.field = ReceptiveField(module, label)

    def add(self, pixels: np.ndarray) -> None:
        """Count an image, uint8 (S, S, 3)."""
        self.field.add(self._normalize(torch.from_numpy(pixels[None]).to(self._device)))

    def heat(self) -> np.ndarray:
        """The heat map that is drawn, float64 (S, S) from 0 to 1."""
        return log_scale(self.field.heat())

    def result(self) -> dict[str, Any]:
        """What is known of it, JSON-able: squares by per cent, as the papers measure and of the gradient itself."""
        name, weights = self.title
        return {
            "model": name,
            "weights": weights,
            "images": self.field.images,
            "skipped": self.field.skipped,
            "log": _by_share(squares(self.heat())),
            "gradient": _by_share(squares(self.field.heat())),
        }


def parse_model(model: str, pretrained: bool, trust: tuple[str, ...] = ()) -> ModelConfig:
    """FILE, NAME=FILE or NAME -> which model with which weights; `trust` is of what files may name.

    Raises:
        ConfigError: neither of these, or a file whose header names no model.
        TeacherError: a file that is missing or damaged.
    """
    name, equals, file = model.partition("=")
    # A path may hold a "=" too.
    if Path(model).is_file() or (not equals and model.endswith(_FILES)):
        if read_header(model).model is None:
            raise ConfigError("the header of these weights names no model", where=model, do=f"Write NAME={model}")
        return ModelConfig(weights=model, trust=trust)
    if equals:
        if not (name and file):
            raise ConfigError("not a model", found=model, allowed="FILE, NAME=FILE or NAME")
        return ModelConfig(model=name, weights=file, trust=trust)
    return ModelConfig(model=model, pretrained=pretrained and not is_factory(model))


def _by_share(found: list[Square]) -> dict[str, dict[str, float]]:
    return {f"{share:.0%}": square._asdict() for share, square in zip(SHARES, found, strict=True)}
