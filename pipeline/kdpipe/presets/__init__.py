"""Presets: settings that were tried, by section, as YAML files of the package."""

from importlib.resources import files

from kdpipe.errors import ConfigError

_SUFFIX = ".yaml"


def preset_names() -> list[str]:
    """All presets in alphabetical order."""
    names = (entry.name for entry in files(__name__).iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def read_preset(name: str) -> str:
    """The YAML text of a preset.

    Raises:
        ConfigError: there is none of this name.
    """
    names = preset_names()
    if name not in names:
        raise ConfigError("no such preset", where="--config", found=f"preset:{name}", allowed=", ".join(names))
    return files(__name__).joinpath(name + _SUFFIX).read_text(encoding="utf-8")
