"""Where settings come from: defaults, then --config, then --set section.key=value, then a command's own options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kdpipe._util.untrusted import YAML_BYTES, load_yaml
from kdpipe.caching import CachingConfig
from kdpipe.config import Config, config_error, first_problem
from kdpipe.errors import ConfigError
from kdpipe.loader import LoaderConfig
from kdpipe.losses import LossConfig
from kdpipe.models import ModelConfig, runs_code
from kdpipe.presets import read_preset
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import TeacherConfig
from kdpipe.trainer import TrainConfig
from kdpipe.views import ViewsConfig

PRESET = "preset:"
# Characters of a key that a message repeats.
_SHOWN = 200


class Params(Config):
    """Every stage's config by name; the sections of params.yaml."""

    views: ViewsConfig = Field(default_factory=ViewsConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    targets: TargetsConfig = Field(default_factory=TargetsConfig)
    caching: CachingConfig = Field(default_factory=CachingConfig)
    loader: LoaderConfig = Field(default_factory=LoaderConfig)
    student: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


def load(
    config_file: str | None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Params:
    """Merge the sources and check them.

    Args:
        config_file: a YAML file of sections, "preset:NAME", or None.
        sets: "section.key=value" items; the value is YAML.
        overrides: by dotted key, values of a command's options; None means not given.
        without: dotted keys of the file that don't concern this command.
        names: of dotted keys, the option that gave them, for errors.

    Raises:
        ConfigError: names the key, what was found and what is allowed.
    """
    tree = _read(config_file) if config_file else {}
    named = _models_named(tree)
    for dotted in without:
        section, key = dotted.split(".")
        if isinstance(tree.get(section), dict):
            tree[section].pop(key, None)
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or "." not in key:
            raise ConfigError("not a setting", where=f"--set {item}", allowed="section.key=value")
        _put(tree, key, _value(text, f"--set {key}"))
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(tree, key, value)
    named |= _models_named(tree)
    try:
        settings = Params.model_validate(tree)
    except ValidationError as e:
        raise _explain(e, config_file, sets, names or {}) from e
    # Code that the user names for one model may be named by the file of another: commands evaluate a student's
    # weights, or read a teacher's last stage, with settings that are about another model.
    trust = tuple(sorted({*settings.teacher.trust, *settings.student.trust, *filter(runs_code, named)}))
    trusting = {name: getattr(settings, name).model_copy(update={"trust": trust}) for name in ("teacher", "student")}
    return settings.model_copy(update=trusting)


def key_values(option: str, items: Sequence[str]) -> dict[str, Any]:
    """Values "key=value" of an option such as --model-kwargs, with YAML values -> a dict."""
    found = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ConfigError("not an argument", where=f"{option} {item}", allowed="key=value")
        found[key] = _value(text, f"{option} {key}")
    return found


def _value(text: str, where: str) -> Any:
    try:
        return load_yaml(text)
    except ValueError as e:
        raise ConfigError(f"value is not YAML: {str(e)[:200]}", where=where, found=text[:100]) from e


def _read(path: str) -> dict[str, Any]:
    if path.startswith(PRESET):
        tree: Any = load_yaml(read_preset(path.removeprefix(PRESET)))
        assert isinstance(tree, dict)
        return tree
    try:
        with Path(path).open("rb") as file:
            tree = load_yaml(file.read(YAML_BYTES + 1).decode()) or {}
    except OSError as e:
        do = f"Check --config; presets are named {PRESET}NAME"
        raise ConfigError(f"settings can't be read: {e.strerror}", where=path, do=do) from e
    except ValueError as e:  # a UnicodeDecodeError too
        raise ConfigError(f"settings are not YAML: {str(e)[:200]}", where=path) from e
    if not isinstance(tree, dict):
        raise ConfigError("settings have no sections", where=path, found=type(tree).__name__)
    return tree


def _models_named(tree: dict[str, Any]) -> set[str]:
    """Models that the settings name, before they are checked."""
    found: list[Any] = []
    for section in ("teacher", "student"):
        of_it = tree.get(section)
        if isinstance(of_it, dict):
            members = of_it.get("members")
            models = [of_it, *(members if isinstance(members, list) else ())]
            found += [model.get("model") for model in models if isinstance(model, dict)]
    return {name for name in found if isinstance(name, str)}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError("not a section", where=dotted, found=section)
    tree[key] = value


def _explain(error: ValidationError, path: str | None, sets: Sequence[str], names: Mapping[str, str]) -> ConfigError:
    key = first_problem(error)[0][:_SHOWN]
    given = [word.partition("=")[0] for word in sets]
    if key in names:
        return config_error(error, Params, f"{names[key]}: {key}")
    if any(key == each or key.startswith(f"{each}.") for each in given):
        return config_error(error, Params, f"--set: {key}")
    return config_error(error, Params, f"{path}: {key}" if path and not _of_options(key, given, names) else key)


def _of_options(key: str, given: Sequence[str], names: Mapping[str, str]) -> bool:
    """Whether a part of this section comes from options, so that the file alone isn't to blame."""
    return any(each.startswith(f"{key}.") for each in (*given, *names))
