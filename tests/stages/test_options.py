"""Options that stand for settings: each is the same as --set and as a line of --config, and help describes them all."""

import shlex
from typing import Any

import click
import pytest
import yaml

from kdpipe_stages.options import Given, Setting, field_of
from kdpipe_stages.settings import load
from tests.hostile.table import commands
from tests.stages.running import kdpipe, refused
from tests.test_readme import parse

COMMANDS = dict(commands())
PAIRS = [(name, param) for name, one in COMMANDS.items() for param in one.params if isinstance(param, Setting)]
# Where any other value would be refused.
VALUES: dict[str, Any] = {
    "train.opt": "sgd",
    "train.model_ema_decay": 0.5,
    "loss.name": "none",
    "targets.kind": "dense",
    "targets.map_rank": 3,
}
# What the option needs beside it.
BESIDE = {"targets.map_rank": ("--set", "targets.map=int8")}


def given(name: str, *words: str) -> Given:
    """The settings of a command line, to which required options are added; the command is not run."""
    command = COMMANDS[name]
    required = [p for p in command.params if p.required and not isinstance(p, Setting)]
    line = [w for p in required for w in ([p.opts[0], "x"] if isinstance(p, click.Option) else ["x"])]
    found: list[Given] = []
    callback, command.callback = command.callback, lambda given, **_: found.append(given)
    try:
        command.invoke(command.make_context(name, [*line, *words]))
    finally:
        command.callback = callback
    return found[0]


def other(param: Setting) -> Any:
    """A value that the setting may have, and has not by default."""
    default = field_of(param.keys[0]).get_default(call_default_factory=True)
    if param.keys[0] in VALUES:
        return VALUES[param.keys[0]]
    if isinstance(param.type, click.Choice):
        return next(choice for choice in param.type.choices if choice != default)
    if isinstance(param.type, click.types.BoolParamType):
        return not default
    if isinstance(param.type, click.types.IntParamType):
        return (default or 0) + 1
    if isinstance(param.type, click.types.FloatParamType):
        return (default or 0.0) + 0.25
    return {"a": 3, "b": "text"} if isinstance(default, dict) else ["timm"] if isinstance(default, tuple) else "name"


def words(param: Setting, value: Any) -> list[str]:
    """An option with this value, as typed."""
    if isinstance(value, bool):
        return [param.opts[0] if value else param.secondary_opts[0]]
    parts = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
    return [word for part in (parts if isinstance(parts, list) else [parts]) for word in (param.opts[0], str(part))]


@pytest.mark.parametrize(("name", "param"), PAIRS, ids=[f"{name}-{param.opts[0]}" for name, param in PAIRS])
def test_an_option_is_the_same_as_set_and_config(tmp_path, name, param):
    value = other(param)
    beside = BESIDE.get(param.keys[0], ())
    tree: dict[str, dict[str, Any]] = {}
    for key in param.keys:
        section, field = key.split(".")
        tree.setdefault(section, {})[field] = value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    by_option = given(name, *words(param, value), *beside).load()
    sets = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key in param.keys]
    assert by_option == load(None, [*sets, *beside[1:]])
    assert by_option == load(str(tmp_path / "c.yaml"), beside[1:])
    assert by_option != load(None, beside[1:])
    # It has precedence over both.
    back = field_of(param.keys[0]).get_default(call_default_factory=True)
    if back is not None and not isinstance(back, dict | tuple) and name != "verify":
        again = given(name, *words(param, back), "--config", str(tmp_path / "c.yaml"), *beside).load()
        assert again == load(None, beside[1:])


@pytest.mark.parametrize("name", sorted({name for name, _ in PAIRS}))
def test_help_has_sections_defaults_and_an_example_that_parses(name):
    command = COMMANDS[name]
    text = command.get_help(click.Context(command, info_name=name, max_content_width=999, terminal_width=999))
    assert "\nOptions:" not in text
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert len(titles) == len(set(titles)) >= 3
    flat = " ".join(text.split())
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, param.name
            assert " ".join(param.help.split()) in flat
            assert param.help[0].isupper() or param.name == "loss"
    example = text[text.index("Example:") :].splitlines()[2:]
    line = shlex.split("".join(part.strip().removesuffix("\\") + " " for part in example))
    assert line[: 1 + len(name.split())] == ["kdpipe", *name.split()]
    parse(line[1:])


def test_help_shows_the_default_of_a_setting():
    text = " ".join(kdpipe("train-student", "--help").out.split())
    assert "Optimizer, by timm's name. [default: adamw]" in text
    assert "--model-ema / --no-model-ema" in text


class TestSuggestions:
    def test_keys_of_set_config_and_sections(self, tmp_path):
        line = refused("train-student", "--index", "x", "--out", "y", "--set", "views.crop_pc=1")
        assert line.startswith("error: --set: views.crop_pc: unknown key; allowed: ")
        assert line.endswith(". Did you mean crop_pct?")
        (tmp_path / "c.yaml").write_text("viws: {seed: 1}")
        line = refused("erf", "m", "--index", "x", "--out", "y", "--config", tmp_path / "c.yaml")
        assert line.endswith(". Did you mean views?")

    def test_models(self, world, tmp_path):
        command = ("cache-teacher", "--index", world.index_path, "--pretrained", "--out", tmp_path / "c")
        assert "Did you mean slak_tiny" in refused(*command, "--teacher", "slak_tny")
        assert "See timm.list_models()" in refused(*command, "--teacher", "qqqqqqqq")

    def test_commands_and_options(self):
        result = kdpipe("train-studnt")
        assert (result.code, "No such command 'train-studnt'. Did you mean train-student?" in result.err) == (2, True)
        result = kdpipe("view", "x", "--otu", "y")
        assert (result.code, "--out" in result.err) == (2, True)


def test_an_unknown_preset_lists_the_known_ones():
    line = refused("train-student", "--index", "x", "--out", "y", "--config", "preset:cifar")
    assert "no such preset; found preset:cifar; allowed: cifar10, digits, digits-teacher" in line


def test_an_impossible_value_names_the_option():
    line = refused("train-student", "--index", "x", "--out", "y", "--epochs", 0)
    assert line.startswith("error: --epochs: train.epochs: input should be greater than or equal to 1; found 0")
