"""Which of the names that files give may be built: the one place where that is decided.

A name can be code. `package.module:factory` is imported and called; a hub name fetches and builds what somebody
published. The user's own settings are trusted: those of the command line and of a params file. What a weights file, a
cache or any other file names is not, unless the user wrote the same name or accepted it with `trust`.
"""

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from kdpipe.errors import TeacherError

HUB = ("hf-hub:", "hf_hub:", "local-dir:")
# Networks of ours that are no entry of timm's registry, by the names that files give them: functions that
# `kdpipe.models.build` has.
WRAPPERS = frozenset({"kdpipe:simkd_student"})
# Wrappers in wrappers; there is no use for more than one.
_DEEPEST = 4
# All numbers among a network's arguments together: channels, depths, sides of kernels and images. Some networks make
# lists of such a length before any layer.
_TOTAL = 2**16


def is_factory(name: str) -> bool:
    """Whether a model name means `package.module:factory` rather than a name of timm's or ours."""
    return ":" in name and not name.startswith(HUB) and name not in WRAPPERS


def runs_code(name: str, kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether building this model runs code, or fetches files, that neither timm nor kdpipe registered."""
    if name in WRAPPERS and kwargs is not None and isinstance(kwargs.get("model"), str):
        return runs_code(kwargs["model"], kwargs.get("model_kwargs"))
    return is_factory(name) or name.startswith(HUB)


def require_trusted(name: str, kwargs: Mapping[str, Any], trust: Iterable[str], where: object) -> None:
    """Refuse a model that a file names, unless timm or kdpipe registered it or the user trusts it. Nothing is imported.

    Args:
        name: of the model.
        kwargs: its arguments, as far as the file gives them.
        trust: names that the user wrote, and what was passed to --trust: a package, a package.module:factory, a hub
            name, or an argument's name.
        where: the file.

    Raises:
        TeacherError: names the file, the name found, and the flag; or a number that is no size of a network.
    """
    accepted = tuple(trust)
    for _ in range(_DEEPEST):
        if runs_code(name) and not any(_covers(entry, name) for entry in accepted):
            raise TeacherError(
                "the file names a model that neither timm nor kdpipe registers; it would be imported or fetched",
                where=where,
                found=name,
                do=f"If you know this code and who made the file, pass --trust {name}",
            )
        odd = [key for key in kwargs if key in _not_of_files() and key not in accepted]
        if odd:
            raise TeacherError(
                f"the file gives the model {name} an argument that is no part of an architecture",
                where=where,
                found=f"{odd[0]}={str(kwargs[odd[0]])[:100]}",
                do=f"If you know what it does and who made the file, pass --trust {odd[0]}",
            )
        if not runs_code(name):
            _require_moderate(kwargs, where)
        if name not in WRAPPERS:
            return
        # What is wrapped is named by the file too.
        base, of_base = kwargs.get("model"), kwargs.get("model_kwargs") or {}
        if not isinstance(base, str) or not isinstance(of_base, dict):
            break
        name, kwargs = base, of_base
    raise TeacherError("the file describes no model that can be wrapped", where=where, found=str(kwargs)[:100])


@functools.cache
def _not_of_files() -> frozenset[str]:
    """Arguments that are no part of an architecture: they make timm read files and URLs, or build something else than
    the network of that name, elsewhere.
    """
    # It takes seconds to import, and settings are read without it.
    import timm
    from timm.models import build_model_with_cfg

    return frozenset(
        {
            *inspect.signature(timm.create_model).parameters,
            *inspect.signature(build_model_with_cfg).parameters,
            *("features_only", "feature_cls", "out_indices", "pruned", "device", "dtype"),
        }
    )


def _require_moderate(kwargs: Mapping[str, Any], where: object) -> None:
    total = _total(kwargs)
    if total > _TOTAL:
        what, found = "the file describes a network of impossible size", f"arguments that add up to {total:.3g}"
        raise TeacherError(what, where=where, found=found, allowed=_TOTAL)


def _total(value: Any) -> float:
    if isinstance(value, Mapping | list | tuple):
        return sum(map(_total, value.values() if isinstance(value, Mapping) else value))
    # An integer of JSON may be beyond what a float can hold.
    return min(abs(value), 1e18) if isinstance(value, int | float) else 0


def _covers(entry: str, name: str) -> bool:
    module = name.partition(":")[0] if is_factory(name) else None
    return entry == name or (module is not None and (module == entry or module.startswith(f"{entry}.")))
