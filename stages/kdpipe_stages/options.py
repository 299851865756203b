"""Options of commands, generated from the configs' fields: help, type and default stand in the field alone.

@command("train-student", "kdpipe train-student --index runs/train.index --out runs/student")
@section("Optimisation", "train: epochs batch_size lr")
@section("Output", click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."))
@SETTINGS
def train_student(as_json: bool, given: Given) -> None: ...
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from kdpipe_stages import command as plain
from kdpipe_stages.command import Command, F
from kdpipe_stages.settings import Params, key_values, load


@dataclass(frozen=True)
class Given:
    """The settings that a command line gives: --config, --set, and the options that stand for settings.

    Attributes:
        flags: values by dotted key, such as train.lr; without options that were not given.
        names: of these keys, the option.
    """

    config_file: str | None = None
    sets: tuple[str, ...] = ()
    flags: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def load(self, overrides: dict[str, Any] | None = None, without: Sequence[str] = ()) -> Params:
        """Merge and check them; arguments and errors as `settings.load`, `overrides` over the options."""
        return load(self.config_file, self.sets, {**self.flags, **(overrides or {})}, without, self.names)

    def has(self, name: str) -> bool:
        """Whether --set or an option gives this section, or this dotted key."""
        keys = [*self.flags, *(item.partition("=")[0] for item in self.sets)]
        return any(key == name or key.startswith(f"{name}.") for key in keys)


class Setting(click.Option):
    """An option that stands for a setting, or for the same setting of several sections."""

    def __init__(self, param_decls: Sequence[str], *, keys: Sequence[str], **attrs: Any) -> None:
        info = field_of(keys[0])
        kind, more = _click_type(info)
        if kind is bool:
            first, *others = param_decls
            param_decls = (f"{first}/--no-{first.removeprefix('--')}", *others)
        super().__init__(param_decls, help=_help(info), default=None, type=kind, **more, **attrs)
        self.keys = tuple(keys)

    def given(self, value: Any) -> Any:
        """A parsed value as the setting has it; None if the option was not given."""
        if value is None or value == ():
            return None
        if self.metavar == _KEY_VALUE:
            return key_values(self.opts[0], value)
        return list(value) if self.multiple else value


class SettingsCommand(Command):
    """A command whose settings reach it together, as the argument `given`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        flags: dict[str, Any] = {}
        names: dict[str, str] = {}
        for param in self.params:
            if isinstance(param, Setting) and (value := param.given(ctx.params.pop(str(param.name)))) is not None:
                flags |= dict.fromkeys(param.keys, value)
                names |= dict.fromkeys(param.keys, param.opts[0])
        config = ctx.params.pop("config_file", None), ctx.params.pop("sets", ())
        ctx.params["given"] = Given(*config, flags, names)
        return super().invoke(ctx)


command = partial(plain.command, cls=SettingsCommand)


def section(title: str, *options: Any) -> Callable[[F], F]:
    """Add options to a command, listed under a heading.

    Args:
        title: the heading.
        options: decorators of click's, or settings: "train: epochs lr" for several of a section, or one with other
            option names: "student.model --student", or for several sections: "teacher.trust,student.trust --trust".
    """
    found: list[Any] = []
    for option in options:
        if not isinstance(option, str):
            found.append(option)
        elif ": " in option:
            of, _, names = option.partition(": ")
            found += [_setting(f"{of}.{name}", f"--{name.replace('_', '-')}") for name in names.split()]
        else:
            found.append(_setting(*option.split()))
    return plain.section(title, *found)


def _setting(keys: str, *names: str) -> Any:
    return click.option(*names, cls=Setting, keys=keys.split(","))


def field_of(key: str) -> FieldInfo:
    """The field of a dotted key such as train.lr."""
    *sections, name = key.split(".")
    config: Any = Params
    for part in sections:
        config = config.model_fields[part].annotation
    found: FieldInfo = config.model_fields[name]
    return found


_KEY_VALUE = "KEY=VALUE"


def _click_type(info: FieldInfo) -> tuple[Any, dict[str, Any]]:
    """Type and further attributes of the option that stands for a field."""
    kind = info.annotation
    kind = next((one for one in get_args(kind) if one is not NoneType), kind) if _optional(kind) else kind
    if get_origin(kind) is Literal:
        values = get_args(kind)
        if all(isinstance(value, int) for value in values):
            return click.IntRange(min(values), max(values)), {}
        return click.Choice(values), {}
    if get_origin(kind) is dict:
        return str, {"multiple": True, "metavar": _KEY_VALUE}
    if get_origin(kind) is tuple:
        return str, {"multiple": True, "metavar": "NAME"}
    assert kind in (bool, int, float, str), f"no option can stand for {kind}"
    return kind, {}


def _optional(kind: Any) -> bool:
    return NoneType in get_args(kind)


def _help(info: FieldInfo) -> str:
    text = str(info.description)
    if get_origin(info.annotation) in (dict, tuple):
        return f"{text} Repeatable."
    default = info.get_default(call_default_factory=True)
    return text if default is None or isinstance(default, bool) else f"{text}  [default: {default}]"


SETTINGS = section(
    "Settings",
    click.option(
        "--config",
        "config_file",
        metavar="FILE|preset:NAME",
        type=click.Path(),
        help="YAML file of settings by section, or a preset of the package.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="One setting, with precedence over --config. Repeatable.",
    ),
)
TRUST = "teacher.trust,student.trust --trust"
