"""params.yaml: every setting with its default and its description. `python -m kdpipe_stages.defaults > params.yaml`."""

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdpipe_stages.settings import Params

_HEAD = """\
# Every setting with its default. A file for --config needs only what differs; --set section.key=value changes one
# setting, and a command's own options have precedence over both. Made by `python -m kdpipe_stages.defaults`.
"""
_COLUMN, _WIDTH = 32, 120


def defaults_yaml() -> str:
    """All sections of the settings as YAML, with a comment for each key."""
    return _HEAD + "\n".join(_lines(Params(), "")) + "\n"


def _lines(config: BaseModel, indent: str) -> Iterator[str]:
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            if not indent:
                yield ""
            yield _commented(f"{indent}{name}:", str(type(value).__doc__).splitlines()[0], indent)
            yield from _lines(value, indent + "  ")
        else:
            plain = config.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
            yield _commented(f"{indent}{name}: {text}", str(info.description) + _choices(info), indent)


def _commented(line: str, comment: str, indent: str) -> str:
    """A line with its comment: behind it where both fit, else above it."""
    found = f"{line.ljust(_COLUMN)}  # {comment}"
    return found if len(found) <= _WIDTH else f"{indent}# {comment}\n{line}"


def _choices(info: FieldInfo) -> str:
    """The values that a field may have, where its description doesn't name them."""
    kinds = (info.annotation, *get_args(info.annotation))
    values = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    named = all(value in str(info.description) for value in values)
    return "" if named else f" One of {', '.join(values)}."


if __name__ == "__main__":
    print(defaults_yaml(), end="")
