"""What a view may look like: the augmentation policy, part of every cache's identity."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.shards.images import DECODER

# Raised whenever the same settings would give other draws or other pixels. Version 1 draws geometry and flip;
# stages for jitter, RandAugment, erasing and mixing have their numbers reserved in `Stage`.
POLICY_VERSION = 1


class Stage:
    """Number of each stage's counter range in a view's stream; never reused, never renumbered."""

    GEOMETRY = 0
    FLIP = 1
    JITTER = 2
    RAND_AUGMENT = 3
    ERASING = 4
    MIXING = 5


class ViewsConfig(Config):
    """Random resized crop and flip for training views, resize and centre crop for the `center` view.

    The names and defaults are timm's (`create_transform`): `scale` is the crop's share of the image's area,
    `ratio` its width over height, `crop_pct` the share of the shorter side that the centre crop keeps.
    """

    seed: int = Field(0, ge=0, lt=2**63, description="seed of all draws of the views")
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_pct: float = Field(0.875, gt=0, le=1, description="centre crop of the `center` view")
    exif: Literal["ignore", "apply"] = "ignore"

    @model_validator(mode="after")
    def _ordered(self) -> "ViewsConfig":
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, found {low} and {high}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, found {self.ratio[0]} and {self.ratio[1]}")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the pixels, besides the images and the render size."""
        return {"version": POLICY_VERSION, **self.model_dump(mode="json"), "decoder": DECODER}
