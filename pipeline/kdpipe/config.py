"""The base of every config: frozen, and rejects unknown keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys. Each module subclasses it for what it builds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def first_problem(error: ValidationError) -> tuple[str, str, Any]:
    """Of the first field that doesn't fit a schema: its dotted key, empty for the whole; pydantic's reason; the
    value found.
    """
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"], first["input"]
