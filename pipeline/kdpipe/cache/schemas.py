"""What the records of a cache may hold. Neither a digest nor a name shows who wrote a record: content is checked.

Types are strict, numbers bounded, and unknown keys refused, so that a record is either of this shape or an error that
names the key. Where a record must agree with another one or with its own name, see `kdpipe.cache.checked`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from kdpipe.cache.identities import ShardEntry
from kdpipe.cache.names import PART_PATTERN
from kdpipe.cache.schema import (
    CLASSES,
    Classes,
    Count,
    Dtype,
    Json,
    Name,
    Record,
    Sha256,
    ShardName,
    Side,
    Text,
    Total,
    Width,
)
from kdpipe.views import View
from kdpipe.views.canaries import COUNT


class StoreRecord(Record):
    """commits/store.json. Records without `identity_digest`, this and others, are older than that is."""

    format: int
    identity_digest: Sha256 = ""
    files: dict[str, Sha256]


class FeatureEntry(Record):
    """A feature in an encoding."""

    shape: Annotated[list[Width], Field(min_length=1, max_length=3)]
    dtype: Dtype
    rank: Width | None
    calibration: Annotated[str, StringConstraints(pattern="^calibration-[0-9a-f]{16}$")] | None


class EncodingEntry(Record):
    """An encoding in a segment's record. Features are left out where they aren't kept."""

    kind: Literal["topk", "dense", "none"]
    k: Annotated[int, Field(ge=0, le=CLASSES)]
    dtype: Literal["float16", "float32"]
    num_classes: Classes
    pooled: FeatureEntry | None = None
    map: FeatureEntry | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        least, most = {"topk": (1, self.num_classes), "dense": (self.num_classes,) * 2, "none": (0, 0)}[self.kind]
        if not least <= self.k <= most:
            raise ValueError(f"k of {self.kind} is {least} to {most}")
        if self.kind == "none" and self.pooled is None and self.map is None:
            raise ValueError("nothing is kept")
        for name, dimensions in (("pooled", 1), ("map", 3)):
            feature: FeatureEntry | None = getattr(self, name)
            if feature is None:
                if name in self.model_fields_set:
                    raise ValueError(f"{name} is null")
                continue
            if len(feature.shape) != dimensions:
                raise ValueError(f"{name} has {dimensions} dimensions")
            if name == "pooled" and (feature.rank or feature.calibration):
                raise ValueError("pooled features have no basis")
            if feature.rank is not None and feature.rank >= feature.shape[-1]:
                raise ValueError("the rank is below the number of channels")
        return self


class Numerics(Record):
    """How the teacher was run. Caches have those that there were when they were made."""

    form: Literal["eager", "merged"] = "eager"
    layers: dict[Text, Text] = Field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1, le=2**24)] = 1
    amp_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    device: Text = "cpu"
    threads: Annotated[int, Field(ge=1, le=2**16)] | None = None
    tf32: bool = False


class SegmentEntry(Record):
    """What a segment is."""

    number: Annotated[int, Field(ge=0, lt=10**6)]
    encoding: EncodingEntry
    views: Annotated[list[Name], Field(min_length=1, max_length=2**16)]
    numerics: Numerics

    @field_validator("views")
    @classmethod
    def _run(cls, views: list[View]) -> list[View]:
        first = views[0]
        run = list(range(first, first + len(views))) if isinstance(first, int) else [first]
        if views != run:
            raise ValueError("consecutive numbers, or one evaluation view")
        return views


class SegmentRecord(Record):
    """commits/<segment>/segment.json."""

    segment: SegmentEntry
    identity_digest: Sha256 = ""
    files: dict[str, Sha256]


class FileEntry(Record):
    """A file of a task."""

    bytes: Count
    sha256: Sha256


class QualityEntry(Record):
    """Sums over a task's views; what isn't kept is left out."""

    views: Count
    labelled: Count
    top1: Count
    top5: Count
    retained_mass: Total = 0.0
    kl: Total = 0.0
    pooled_error: Total = 0.0
    map_error: Total = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.top1 <= self.top5 <= self.labelled <= self.views:
            raise ValueError("top1 <= top5 <= labelled <= views")
        return self


class TaskRecord(Record):
    """commits/<segment>/<shard>.json. Without `segment_digest` it is older than that is."""

    segment: str
    segment_digest: Sha256 = ""
    identity_digest: Sha256 = ""
    shard: ShardEntry
    files: dict[str, FileEntry]
    quality: QualityEntry


class HeadNotes(Record):
    """About a teacher's classifier."""

    teacher: Sha256


class TailNotes(HeadNotes):
    """About a teacher's last stage."""

    model: Text
    model_kwargs: Json
    num_classes: Classes
    input_size: Side
    stage: Text
    norm: Text | None
    channels_last: bool


class CalibrationNotes(Record):
    """About a map's calibration."""

    rank: Width | None
    # A share, but for rounding.
    explained: Annotated[float, Field(ge=0, le=1.001)]
    views: Count
    tokens: Count


_NOTES: dict[str, type[Record]] = {"head": HeadNotes, "tail": TailNotes}


class PartRecord(Record):
    """commits/<part>.json."""

    part: Annotated[str, StringConstraints(pattern=f"^({PART_PATTERN})$")]
    identity_digest: Sha256 = ""
    files: dict[str, Sha256]
    bytes: Count
    about: dict[str, JsonValue]

    @model_validator(mode="after")
    def _notes(self) -> Self:
        _NOTES.get(self.part, CalibrationNotes).model_validate(self.about)
        return self


class CanaryEntry(Record):
    """Which view a canary is."""

    shard: ShardName
    key: Annotated[str, StringConstraints(max_length=2**16)]
    view: Name


class CanaryLabels(Record):
    """canaries/labels.json."""

    canaries: Annotated[list[CanaryEntry], Field(min_length=1, max_length=COUNT)]


class RunEntry(Record):
    """A run in the provenance; `merged` has the sources of a merge."""

    shards: Text
    samples: Count
    teacher: Json
    date: Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[0-9T:.+-]{0,30}$")]
    host: Text
    machine: Text
    python: Text
    versions: dict[Text, Text]
    merged: list[Text] = Field(default_factory=list)


class Provenance(Record):
    """provenance.json."""

    runs: Annotated[list[RunEntry], Field(max_length=2**20)]


class MeansEntry(Record):
    """Means over the views of a cache, of what is known."""

    views: Count
    teacher_top1: Total | None
    teacher_top5: Total | None
    retained_mass: Total | None
    encoding_loss: Total | None
    pooled_error: Total | None
    map_error: Total | None


class CacheRecordFile(Record):
    """A file that names cached targets, see `kdpipe.cache.manifest`."""

    cache: Text
    teacher: Annotated[str, StringConstraints(max_length=2**16)]
    identity: Sha256
    encoding: EncodingEntry
    views: Annotated[list[Name], Field(min_length=1, max_length=2**20)]
    root: Sha256
    samples: Count
    bytes: Count
    quality: MeansEntry
