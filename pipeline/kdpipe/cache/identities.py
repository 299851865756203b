"""What a cache may be a cache of: the schema of its identity."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator

from kdpipe._util.fingerprint import canonical_json
from kdpipe.cache.schema import BLOCK, SAMPLES, Classes, Count, Json, Record, Sha256, ShardName, Side, Text
from kdpipe.shards.classes import ClassName
from kdpipe.views import ViewsConfig
from kdpipe.views.policy import POLICY_VERSION


class ShardEntry(Record):
    """A shard in the identity, and in the records of its tasks."""

    name: ShardName
    samples: Annotated[int, Field(ge=0, le=SAMPLES)]
    content: Sha256
    labels: Sha256


class Network(Record):
    """A teacher of one network. `logit_scale` is left out where there is none."""

    model: Text
    model_kwargs: Json
    weights: Sha256
    num_classes: Classes
    input_size: Side
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[float], Field(min_length=3, max_length=3)]
    logit_scale: float = 1.0


class Ensemble(Record):
    """A teacher of several."""

    model: Annotated[str, StringConstraints(max_length=2**16, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
    members: Annotated[list[Network], Field(min_length=1, max_length=2**10)]
    combine: Literal["log-probs", "logits"]
    weights: Sha256
    num_classes: Classes
    input_size: Side


class Decoder(Record):
    """Of images."""

    name: Text
    version: Count


class Identity(Record):
    """What a cache is a cache of."""

    block_size: Annotated[int, Field(ge=1, le=BLOCK)]
    shards: Annotated[list[ShardEntry], Field(min_length=1, max_length=2**20)]
    views: dict[str, JsonValue]
    render_size: Side
    teacher: Network | Ensemble
    # Left out of the identity of a teacher that is a function of its input.
    nondeterministic: Literal[True] = True
    # Left out where names of classes are unknown.
    classes: Annotated[list[ClassName], Field(min_length=1, max_length=2**24)] = Field(default_factory=list)

    @field_validator("teacher", mode="before")
    @classmethod
    def _kind(cls, teacher: Any) -> Any:
        kind = Ensemble if isinstance(teacher, dict) and "members" in teacher else Network
        return kind.model_validate(teacher)  # alone, so that an error names its key

    @field_validator("shards")
    @classmethod
    def _distinct(cls, shards: list[ShardEntry]) -> list[ShardEntry]:
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("two shards of one name")
        if not any(shard.samples for shard in shards):
            raise ValueError("no samples")
        return shards

    @field_validator("views")
    @classmethod
    def _policy(cls, views: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Those of other versions are only compared."""
        _Versions.model_validate(views)
        settings = {name: value for name, value in views.items() if name not in _Versions.model_fields}
        if views["version"] == POLICY_VERSION:
            missing = [name for name in ViewsConfig.model_fields if name not in settings]
            if missing:
                raise ValueError(f"{missing[0]} is missing")
            ViewsConfig.model_validate_json(canonical_json(settings), strict=True)
        return views


class _Versions(BaseModel):
    """What an identity has of its views beside the settings."""

    model_config = ConfigDict(strict=True, extra="ignore")

    version: Count
    decoder: Decoder
