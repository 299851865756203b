"""What schemas of a cache's files are made of: strict types with bounds, and the one error for what doesn't fit."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from kdpipe.cache.names import fits_shard, shown
from kdpipe.config import Config
from kdpipe.errors import CorruptionError

# No cache is near these; what is beyond them was not measured but made up.
CLASSES, BLOCK, SIDE, WIDTH, SAMPLES = 2**24, 2**24, 2**14, 2**20, 2**31
_DO = "Restore it from a copy. If there is none, don't use this cache: kdpipe has not written it"

T = TypeVar("T", bound=BaseModel)


def _shard(name: str) -> str:
    if not fits_shard(name):
        raise ValueError("no name that a shard can have")
    return name


Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=2**12, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
ShardName = Annotated[str, AfterValidator(_shard)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Total = Annotated[float, Field(ge=-(2**53), le=2**53)]
Classes = Annotated[int, Field(ge=1, le=CLASSES)]
Side = Annotated[int, Field(ge=1, le=SIDE)]
Width = Annotated[int, Field(ge=1, le=WIDTH)]
Json = dict[Text, JsonValue]
Name = Annotated[int, Field(ge=0, lt=2**31)] | Literal["center", "top-left", "top-right", "bottom-left", "bottom-right"]
Dtype = Literal["float32", "float16", "int8"]


class Record(Config):
    """Base of all: JSON types as they are, nothing converted."""

    model_config = ConfigDict(strict=True)


def validated(kind: type[T], content: Any, where: object) -> T:
    """A document as what it must be.

    Raises:
        CorruptionError: it has another shape; the key is named.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as e:
        raise refused(e, where) from None
    except RecursionError:
        raise wrong(where, "", "nested too deeply") from None


def refused(error: ValidationError, where: object) -> CorruptionError:
    """The error for a document of another shape; it names the first key that is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) if isinstance(part, int) else shown(part).strip("'") for part in first["loc"])
    text = " ".join(first["msg"].removeprefix("Value error, ").split())
    return wrong(where, key, text[0].lower() + text[1:120], None if first["type"] == "missing" else first["input"])


def wrong(where: object, key: str, what: str, found: object = None) -> CorruptionError:
    """The error for a document in which something isn't as it must be."""
    simple = isinstance(found, str | int | float | bool)
    return CorruptionError(
        "a record of the cache isn't as kdpipe writes them: " + (f"{key}: {what}" if key else what),
        where=where,
        found=shown(found) if simple else None,
        do=_DO,
    )
