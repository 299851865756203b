"""What a file's header contains about a network, and the bounds that it is checked against."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from kdpipe.config import first_problem
from kdpipe.errors import TeacherError
from kdpipe.models.config import CLASSES_OF_FILE, SIDE
from kdpipe.models.weights import read_metadata
from kdpipe.shards.classes import ClassName

_VALUES, _DEEPEST, _TEXT = 1000, 16, 300


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _small(value: Any) -> Any:
    if _count(value, 0) > _VALUES:
        raise ValueError(f"more than {_VALUES} values")
    return value


def _count(value: Any, depth: int) -> int:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, str) and len(value) > _TEXT:
        raise ValueError(f"a text of more than {_TEXT} characters")
    return 1 + sum(_count(child, depth + 1) for child in children)


Text = Annotated[str, Field(min_length=1, max_length=_TEXT), AfterValidator(_printable)]
Arguments = Annotated[dict[str, Any], AfterValidator(_small)]
Record = TypeVar("Record", bound=BaseModel)


class ModelDescription(BaseModel):
    """A network as a file describes it. Types are exact; keys that are no part of this are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: Text | None = None
    model_kwargs: Arguments = Field(default_factory=dict)
    num_classes: int | None = Field(None, ge=1, le=CLASSES_OF_FILE)
    input_size: int | None = Field(None, ge=1, le=SIDE)


class Header(ModelDescription):
    """What `kdpipe train-student` writes into the header of weights; all of it may be missing in other files."""

    mean: list[float] | None = Field(None, min_length=3, max_length=3)
    std: list[float] | None = Field(None, min_length=3, max_length=3)
    logit_scale: float | None = None
    views: dict[str, Any] | None = None
    classes: Annotated[list[ClassName], Field(min_length=1, max_length=CLASSES_OF_FILE)] | None = None


def read_header(path: str | Path) -> Header:
    """The header of a file of weights; empty for a file without.

    Raises:
        TeacherError: the file is missing or damaged, or its header is not one that kdpipe writes.
    """
    return parsed(Header, read_metadata(path), path, "the header of the weights isn't one that kdpipe writes")


def parsed(kind: type[Record], content: Any, where: object, what: str) -> Record:
    """What a file holds, as a record of this kind.

    Raises:
        TeacherError: it is something else; names the first key that is wrong.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as e:
        key, why, found = first_problem(e)
        raise TeacherError(
            f"{what}: {key or 'all of it'}: {why[0].lower() + why[1:]}",
            where=where,
            found=repr(found)[:100],
            do="Get the file from its source again",
        ) from e
