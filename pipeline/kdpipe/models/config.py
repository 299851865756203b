"""Which model, which weights, which input: settings that are read and checked without torch."""

import os
from typing import Any, Self

from pydantic import Field

from kdpipe.config import Config

# Classes that a user may set, and that a file may claim: far beyond any classifier, and below what would fill a
# machine's memory by a number alone.
CLASSES, CLASSES_OF_FILE = 2**24, 2**20
# Pixels a side.
SIDE = 4096


class ModelConfig(Config):
    """A model, its weights and its input. What is None comes from the weights' header, then from timm."""

    model: str | None = Field(
        None,
        description="A timm name, hub name or package.module:factory; by default as in the weights' header.",
    )
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the model.")
    weights: str | None = Field(None, description="Weights: a safetensors file or a weights-only pickle.")
    checkpoint_key: str | None = Field(
        None, description="Entry of the weights' file, such as model or model_ema; by default the first one found."
    )
    key_prefix: str | None = Field(
        None, description="What names in the weights' file begin with, such as student.; by default found by fit."
    )
    class_map: str | None = Field(
        None, description="File that lists which rows of the weights' classifier are the classes."
    )
    pretrained: bool = Field(False, description="Use timm's published weights from its hub.")
    num_classes: int | None = Field(
        None, ge=1, le=CLASSES, description="Number of classes; by default that of cache, weights or index."
    )
    input_size: int | None = Field(
        None, ge=1, le=SIDE, description="Side of the square input in pixels; by default that of weights or model."
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="Mean of each colour channel, 0 to 1; by default that of weights or model."
    )
    std: tuple[float, float, float] | None = Field(
        None, description="Standard deviation of each colour channel, 0 to 1; by default that of weights or model."
    )
    trust: tuple[str, ...] = Field(
        (), description="Code that files may name: a package, package.module:factory, hub name or argument."
    )

    def trusted(self) -> tuple[str, ...]:
        """Names that files may give: what is trusted, and the model's own, which the user wrote."""
        return (*self.trust, *([self.model] if self.model else ()))

    def absolute(self) -> Self:
        """The same with absolute paths, for processes that run elsewhere."""
        files = {name: getattr(self, name) for name in ("weights", "class_map")}
        return self.model_copy(update={name: path and os.path.abspath(path) for name, path in files.items()})
