"""What a cache keeps of a view."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kdpipe.config import Config

FeatureDtype = Literal["float32", "float16", "int8"]
# The flags of `kdpipe cache-teacher` that keep a feature, by its name.
FEATURE_FLAGS = {"pooled": "--pooled", "map": "--feature-map"}


class TargetsConfig(Config):
    """What a cache keeps of a view: logits in one of three encodings, and features beside them or instead."""

    kind: Literal["topk", "dense", "none"] = Field(
        "topk",
        description="Logits to keep: topk (log-probs of the k likeliest classes and the label), dense or none.",
    )
    k: int = Field(16, ge=1, description="Classes that topk keeps; all of them where there are fewer.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Dtype of log-probs or logits.")
    pooled: FeatureDtype | None = Field(
        None, description="Also keep the pooled feature, the classifier's input, in this dtype, and the classifier."
    )
    map: FeatureDtype | None = Field(None, description="Also keep the final feature map, in this dtype.")
    map_rank: int | None = Field(
        None, ge=1, description="Components of a PCA basis on which the map is kept, fewer than its channels."
    )
    tail: bool = Field(False, description="Also keep the teacher's last stage, which the loss scalekd needs.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.kind == "none" and not (self.pooled or self.map):
            raise ValueError("targets.kind none keeps nothing; add targets.pooled or targets.map")
        if self.map_rank and not self.map:
            raise ValueError(f"map_rank {self.map_rank} needs a feature map, and none is kept; add targets.map")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are kept."""
        return tuple(name for name in ("pooled", "map") if getattr(self, name))
