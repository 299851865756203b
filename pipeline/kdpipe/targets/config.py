"""What a cache keeps of a view."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdpipe.config import Config

FeatureDtype = Literal["float32", "float16", "int8"]
# The flags of `kdpipe cache-teacher` that keep a feature, by its name.
FEATURE_FLAGS = {"pooled": "--pooled", "map": "--feature-map"}


class TargetsConfig(Config):
    """What a cache keeps of a view: logits in one of three ways, and features beside them or instead."""

    kind: Literal["topk", "dense", "none"] = Field("topk", description="top k log-probs, all logits, or neither")
    k: int = Field(16, ge=1, description="classes kept by topk; all of them where there are fewer")
    dtype: Literal["float16", "float32"] = Field("float16", description="of log-probs or logits")
    pooled: FeatureDtype | None = Field(None, description="keep what the teacher's classifier sees, in this dtype")
    map: FeatureDtype | None = Field(None, description="keep the teacher's final map, in this dtype")
    map_rank: int | None = Field(
        None, ge=1, description="keep the map on a PCA basis of so many components, fewer than its channels"
    )
    tail: bool = Field(False, description="keep the teacher's last stage beside the cache, for scalekd")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.kind == "none" and not (self.pooled or self.map):
            raise ValueError("targets.kind none keeps nothing; add targets.pooled or targets.map")
        if self.map_rank and not self.map:
            raise ValueError(f"map_rank {self.map_rank} is about a map, and none is kept; add targets.map")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are kept."""
        return tuple(name for name in ("pooled", "map") if getattr(self, name))
