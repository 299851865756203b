"""Reading imports without running them."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"kdpipe": ROOT / "pipeline", "kdpipe_stages": ROOT / "stages"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names of what a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def closure(modules: Iterable[str]) -> set[Path]:
    """Files, relative to the root, of these modules and of all they import here; empty ones left out."""
    found: set[Path] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        path = _file(name)
        if path is None or path in found:
            continue
        found.add(path)
        todo += imports(path)
        # Importing a module runs the packages it lies in; the front door itself imports nothing then.
        todo += {name.rpartition(".")[0]} - PACKAGES.keys()
    return {path.relative_to(ROOT) for path in found if path.stat().st_size}


def _file(name: str) -> Path | None:
    """Of a module, or of the module that an imported name is defined in; None outside of the project."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(package, *rest)
    here = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
    return here or (_file(name.rpartition(".")[0]) if rest else None)
