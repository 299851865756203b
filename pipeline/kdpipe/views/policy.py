"""What a view may look like: the augmentation policy, part of every cache's identity."""

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kdpipe.config import Config
from kdpipe.views.rand_augment import RandAugmentSpec

# Raised whenever the same settings would give other draws or other pixels.
POLICY_VERSION = 2
# How `kdpipe.shards.images` makes pixels of files: libjpeg's slow integer DCT with fancy upsampling, then Pillow's
# conversion to RGB. The number is raised when these pixels change; libraries' releases are provenance, and a cache's
# canaries notice the release that changes a pixel against its guarantee.
_DECODER: dict[str, str | int] = {"name": "pillow-rgb", "version": 1}

Range = tuple[float, float]
Interpolation = Literal["bilinear", "bicubic"]

_ERASING = ("re_mode", "re_count", "re_area", "re_aspect")
_MIXING = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mix_every", "mix")


class ViewsConfig(Config):
    """How training views are augmented, and how the evaluation views are cropped.

    Names and meanings are those of timm's `create_transform` and `Mixup`, and so are the defaults, but for
    colour jitter, which is off, and `interpolation`. Order: crop and resize, flips, RandAugment or jitter, greyscale,
    blur, mixing, erasing.
    """

    seed: int = Field(0, ge=0, lt=2**63, description="Seed of all draws of the views; training has its own.")
    train_crop_mode: Literal["rrc", "rkrc", "rkrr"] = Field(
        "rrc", description="rrc: random resized crop; rkrc, rkrr: resize keeping the ratio, centre or random crop."
    )
    scale: Range | None = Field(
        None, description="Crop's share of the image's area; by default 0.08 to 1, of rkrc and rkrr 0.8 to 1."
    )
    ratio: Range | None = Field(
        None, description="Crop's width over height; by default 3/4 to 4/3, of rkrc and rkrr 0.9 to 1/0.9."
    )
    hflip: float = Field(0.5, ge=0, le=1, description="Probability of a flip left to right.")
    vflip: float = Field(0.0, ge=0, le=1, description="Probability of a flip upside down.")
    interpolation: Literal["bilinear", "bicubic", "random"] = Field(
        "bicubic", description="Interpolation of resizing and warps; random draws one of the two."
    )
    auto_augment: str | None = Field(
        None, description="RandAugment in timm's syntax, for example rand-m9-mstd0.5-inc1; by default none."
    )
    fill: tuple[int, int, int] = Field(
        (124, 116, 104), description="Colour, 0 to 255, of pixels that a warp uncovers; ImageNet's mean."
    )
    color_jitter: float | tuple[float, ...] | None = Field(
        None, description="Strength of colour jitter: one number, or brightness, contrast, saturation and maybe hue."
    )
    color_jitter_prob: float | None = Field(
        None, ge=0, le=1, description="Probability of colour jitter; by default always."
    )
    force_color_jitter: bool = Field(
        False, description="Apply colour jitter beside RandAugment, which otherwise replaces it, as in timm."
    )
    grayscale_prob: float = Field(0.0, ge=0, le=1, description="Probability of a greyscale view.")
    gaussian_blur_prob: float = Field(
        0.0, ge=0, le=1, description="Probability of Gaussian blur, sigma 0.1 to 2 pixels."
    )
    re_prob: float = Field(0.0, ge=0, le=1, description="Probability of random erasing.")
    re_mode: Literal["const", "rand", "pixel"] = Field(
        "const", description="Erased pixels: const: 0 after normalisation; rand: one random colour; pixel: noise."
    )
    re_count: int = Field(1, ge=1, le=16, description="Largest number of erased boxes.")
    re_area: Range = Field((0.02, 1 / 3), description="Erased boxes' share of the area, together.")
    re_aspect: Range = Field((0.3, 1 / 0.3), description="Height over width of an erased box.")
    mixup: float = Field(0.0, ge=0, description="Alpha of mixup; 0: none.")
    cutmix: float = Field(0.0, ge=0, description="Alpha of CutMix; 0: none.")
    mixup_prob: float = Field(1.0, ge=0, le=1, description="Probability that a pair is mixed.")
    mixup_switch_prob: float = Field(0.5, ge=0, le=1, description="Probability of CutMix where mixup is on too.")
    mix: Literal["views", "targets"] = Field(
        "views",
        description="views: the teacher sees mixed views; targets: its outputs on unmixed ones are mixed (docs/views).",
    )
    mix_every: int = Field(1, ge=1, description="Consecutive views in which a sample keeps its partner.")
    crop_pct: float = Field(
        0.875, ge=0.05, le=1, description="Share of the shorter side that the crop of evaluation views keeps."
    )
    exif: Literal["ignore", "apply"] = Field("ignore", description="EXIF orientation; ignore, as timm does, or apply.")

    @field_validator("auto_augment")
    @classmethod
    def _known(cls, text: str | None) -> str | None:
        if text is not None:
            RandAugmentSpec.parse(text)
        return text

    @field_validator("color_jitter", mode="before")
    @classmethod
    def _strengths(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list | tuple) else [value]
        right = all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 100 for x in numbers)
        if value is not None and not (right and len(numbers) in (1, 3, 4) and (len(numbers) < 4 or numbers[3] <= 0.5)):
            raise ValueError("must be 1, 3 or 4 numbers from 0 to 100, the fourth (hue) at most 0.5")
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value

    @field_validator("fill")
    @classmethod
    def _colour(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= x <= 255 for x in value):
            raise ValueError("must be three numbers from 0 to 255")
        return value

    @field_validator("scale", "ratio", "re_area", "re_aspect")
    @classmethod
    def _ordered(cls, value: Range | None, info: ValidationInfo) -> Range | None:
        least, most = (1e-4, 1) if info.field_name in ("scale", "re_area") else (1e-3, 1000)
        if value is not None and not least <= value[0] <= value[1] <= most:
            raise ValueError(f"must be {least} <= low <= high <= {most}")
        return value

    @field_validator("mixup", "cutmix")
    @classmethod
    def _alpha(cls, value: float) -> float:
        # Smaller ones mix nothing and leave float64.
        if 0 < value < 1e-3 or value > 1e3:
            raise ValueError("must be 0, or from 0.001 to 1000")
        return value

    @model_validator(mode="after")
    def _possible(self) -> "ViewsConfig":
        if self.mix == "targets" and self.mixes and self.re_prob:
            # The teacher's parts would be erased each by itself, the student's mixture as a whole.
            raise ValueError("re_prob can't be combined with mix: targets; mix: views does both")
        return self

    @property
    def crop_scale(self) -> Range:
        """`scale` in effect."""
        return self.scale or ((0.08, 1.0) if self.train_crop_mode == "rrc" else (0.8, 1.0))

    @property
    def crop_ratio(self) -> Range:
        """`ratio` in effect."""
        return self.ratio or ((3 / 4, 4 / 3) if self.train_crop_mode == "rrc" else (0.9, 1 / 0.9))

    @property
    def _jitter(self) -> tuple[float, float, float, float]:
        given = self.color_jitter or 0.0
        numbers = tuple(given) if isinstance(given, tuple) else (given,) * 3
        b, c, s, h = (*numbers, 0.0)[:4]
        return b, c, s, h

    @property
    def jitter(self) -> tuple[float, float, float, float] | None:
        """Strengths of brightness, contrast, saturation and hue in effect: RandAugment replaces jitter, as in timm."""
        replaced = self.auto_augment is not None and not self.force_color_jitter and "3a" not in self.auto_augment
        return self._jitter if any(self._jitter) and not replaced and self.color_jitter_prob != 0 else None

    @property
    def mixes(self) -> bool:
        """Whether pixels of two samples are mixed at all."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0

    @property
    def cached(self) -> "ViewsConfig":
        """The policy of the views that the teacher sees: unmixed where the student mixes targets."""
        return self.model_copy(update=_defaults(_MIXING)) if self.mix == "targets" else self

    def remarks(self) -> list[str]:
        """Settings that have no effect, one line each."""
        found = []
        if any(self._jitter) and self.jitter is None:
            found.append(
                "views.color_jitter has no effect beside RandAugment, as in timm; force_color_jitter applies it"
            )
        return found

    def across_sizes(self) -> tuple[list[str], list[str]]:
        """What two renderings of a view at different sizes have in common, and what each has for itself."""
        shared, own = ["crop", "flips"], ["resized pixels"]
        if self.auto_augment or self.jitter or self.grayscale_prob:
            shared.append("colour operations and warps")
            own.append("sharpness and blur, which are measured in pixels")
        elif self.gaussian_blur_prob:
            own.append("blur, which is measured in pixels")
        if self.mixes:
            shared.append("partners and their shares")
        if self.re_prob:
            shared.append("erased boxes")
            own += ["erased noise"] if self.re_mode == "pixel" else []
        return shared, own

    def identity(self) -> dict[str, Any]:
        """What decides the cached pixels, besides the images and the render size; without what has no effect."""
        policy, plain = self.cached, ViewsConfig()
        jitter, forced = policy.jitter, policy.model_copy(update={"force_color_jitter": False}).jitter is None
        idle = {
            "fill": not policy.auto_augment,
            "color_jitter_prob": jitter is None or policy.color_jitter_prob == 1,
            "force_color_jitter": jitter is None or not forced,
            "mixup_switch_prob": not (policy.mixup and policy.cutmix),
            **dict.fromkeys(_ERASING, not policy.re_prob),
        } | (dict.fromkeys(_MIXING, True) if not policy.mixes else {})
        effective = {name: getattr(plain, name) for name, unused in idle.items() if unused}
        effective |= {"scale": policy.crop_scale, "ratio": policy.crop_ratio, "color_jitter": jitter}
        settings = policy.model_copy(update=effective).model_dump(mode="json")
        return {"version": POLICY_VERSION, **settings, "decoder": _DECODER}

    def student_identity(self) -> dict[str, Any]:
        """What more decides a student's batches: how it mixes where the cached views are unmixed."""
        if self.mix == "views" or not self.mixes:
            return {}
        settings = {name: getattr(self, name) for name in _MIXING}
        return settings if self.mixup and self.cutmix else settings | _defaults(["mixup_switch_prob"])


def _defaults(names: list[str] | tuple[str, ...]) -> dict[str, Any]:
    return {name: ViewsConfig.model_fields[name].default for name in names}
