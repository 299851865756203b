"""Exports of a package that are imported when they are first used (PEP 562): torch and timm take seconds to import."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def exports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package, which type checkers shouldn't see: they read the imports beside it.

    Args:
        package: its `__name__`.
        modules: by the name of a module in it, the names that it defines, separated by blanks. None of
            them may be a module's name too: an imported module would take its place.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
