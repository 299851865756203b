"""The base of every config: frozen, and rejects unknown keys."""

import json
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpipe._util.suggest import did_you_mean
from kdpipe.errors import ConfigError

# Characters of a wrong value that a message repeats.
_SHOWN = 200


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys. Each module subclasses it for what it builds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def first_problem(error: ValidationError) -> tuple[str, str, Any]:
    """Of the first field that doesn't fit a schema: its dotted key, empty for the whole; pydantic's reason; the
    value found.
    """
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"], first["input"]


def config_error(error: ValidationError, kind: Any, where: str) -> ConfigError:
    """The error of one line for settings that don't fit the config class `kind`; `where` has the key in it."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "extra_forbidden":
        fields: dict[str, Any] = kind.model_fields
        for part in first["loc"][:-1]:
            # A place in a list names no field: those of its entries are there already.
            if isinstance(part, str):
                inner = fields[part].annotation if part in fields else None
                fields = getattr(next(iter(get_args(inner)), inner), "model_fields", {})
        do = did_you_mean(str(first["loc"][-1]), fields)
        return ConfigError("unknown key", where=where, allowed=", ".join(sorted(fields)), do=do)
    found = first["input"]
    if not isinstance(found, str | int | float | bool | None):
        found = json.dumps(found, default=str, skipkeys=True)  # YAML makes dates of what looks like one
    if isinstance(found, str):
        found = found[:_SHOWN]
    what = first["msg"].removeprefix("Value error, ")  # pydantic's, before the text of a validator's ValueError
    found = None if f"found {found}" in what else found
    return ConfigError(what[0].lower() + what[1:], where=where, found=found)
