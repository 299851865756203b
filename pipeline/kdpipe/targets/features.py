"""Features on their way to the cache and back: pooled features and final maps, rounded, or projected on few axes.

A token is the vector of one position of a map, or a whole pooled feature. int8 has one scale a token, because
losses such as ScaleKD's are not invariant to scale, so that tokens can't be normalised before they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from kdpipe.targets.config import FeatureDtype

if TYPE_CHECKING:
    import torch

# -128 marks rows that were never written.
_LARGEST = 127
# A scale is rounded up to float16, so that no token leaves the range.
_UP, _LEAST = 1 + 2**-10, 2**-24


@dataclass(frozen=True)
class ArrayField:
    """One array of the cache: trailing shape and NumPy dtype of a view's entry."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of a view's entry, uncompressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Calibration:
    """Statistics of a map's channels over the first views, and the axes of its principal components.

    Attributes:
        mean, std: float32 (D,).
        components: float32 (rank, D), orthonormal rows, largest variance first; None for the map as it is.
        explained: share of the variance about the mean that they hold, in [0, 1].
    """

    mean: torch.Tensor
    std: torch.Tensor
    components: torch.Tensor | None = None
    explained: float = 1.0

    @classmethod
    def fit(cls, tokens: torch.Tensor, rank: int | None) -> Self:
        """Fit to tokens, float (n, D)."""
        import torch

        x = tokens.double().cpu()
        mean = x.mean(dim=0)
        x, degrees = x - mean, max(1, len(x) - 1)
        std = (x.square().sum(dim=0) / degrees).sqrt()
        if rank is None:
            return cls(mean.float(), std.float())
        variances, axes = torch.linalg.eigh(x.T @ x / degrees)  # ascending
        axes = axes.flip(1)[:, :rank].T
        # The sign of an axis is arbitrary: its largest entry is positive.
        axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
        share = variances.flip(0).clamp(min=0)
        explained = float(share[:rank].sum() / share.sum().clamp(min=torch.finfo(torch.float64).tiny))
        return cls(mean.float(), std.float(), axes.float().contiguous(), explained)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As stored."""
        own = {"mean": self.mean, "std": self.std}
        return own if self.components is None else {**own, "components": self.components}

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (..., D) -> (..., rank); as they are without components."""
        if self.components is None:
            return x
        return (x - self.mean.to(x.device)) @ self.components.to(x.device).T

    def restore(self, z: torch.Tensor) -> torch.Tensor:
        """(..., rank) -> (..., D), what the components hold."""
        if self.components is None:
            return z
        return z @ self.components.to(z.device) + self.mean.to(z.device)


@dataclass(frozen=True)
class Feature:
    """How one feature lies in arrays.

    Attributes:
        name: pooled or map.
        shape: (D,) of a pooled feature, (h, w, D) of a map, of the teacher.
        dtype: of the array.
        rank: components of the basis; None for the feature as it is.
        calibration: name of the part of the cache that holds the basis and the channels' statistics; of a map.
    """

    name: Literal["pooled", "map"]
    shape: tuple[int, ...]
    dtype: FeatureDtype
    rank: int | None = None
    calibration: str | None = None

    @property
    def label(self) -> str:
        """Part of an encoding's name: map-int8-r64."""
        return f"{self.name}-{self.dtype}" + (f"-r{self.rank}" if self.rank else "")

    def fields(self) -> tuple[ArrayField, ...]:
        """Its arrays."""
        values = ArrayField(self.name, (*self.shape[:-1], self.rank or self.shape[-1]), self.dtype)
        if self.dtype != "int8":
            return (values,)
        return (values, ArrayField(f"{self.name}_scale", self.shape[:-1], "float16"))

    def encode(self, x: torch.Tensor, calibration: Calibration | None) -> dict[str, np.ndarray]:
        """float (N, ..., D) -> arrays; what is too large for them is not finite there."""
        import torch

        z = x.float() if calibration is None or self.rank is None else calibration.project(x.float())
        if self.dtype != "int8":
            return {self.name: z.to(getattr(torch, self.dtype)).cpu().numpy()}
        scale = (z.abs().amax(dim=-1) / _LARGEST * _UP + _LEAST).to(torch.float16)
        steps = (z / scale.float()[..., None]).round().clamp(-_LARGEST, _LARGEST)
        return {self.name: steps.to(torch.int8).cpu().numpy(), f"{self.name}_scale": scale.cpu().numpy()}

    def decode(self, fields: dict[str, torch.Tensor], calibration: Calibration | None) -> torch.Tensor:
        """Rows as read -> float32 (N, ..., D)."""
        z = fields[self.name].float()
        if self.dtype == "int8":
            z = z * fields[f"{self.name}_scale"].float()[..., None]
        return z if calibration is None or self.rank is None else calibration.restore(z)

    def json(self) -> dict[str, Any]:
        """As stored in a segment."""
        return {"shape": list(self.shape), "dtype": self.dtype, "rank": self.rank, "calibration": self.calibration}

    @classmethod
    def parse(cls, name: Any, data: dict[str, Any]) -> Self:
        """From `json()`."""
        return cls(name, tuple(data["shape"]), data["dtype"], data["rank"], data["calibration"])
