"""Keep the code that dvc.yaml's stages depend on as it is: `python -m kdpipe_stages.dvc_deps` rewrites the lists.

A stage depends on what its command imports, directly and through others, in pipeline/ and stages/. Where that is
most of a package, the package's folder stands for it. stages/kdpipe_stages/cli.py, which only finds commands, is left out.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import yaml

from kdpipe_stages.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "stages")


def main() -> int:
    """Rewrite dvc.yaml; say what changed."""
    path = ROOT / "dvc.yaml"
    before = path.read_text()
    after = rewrite(before, code_of(before))
    if after != before:
        path.write_text(after)
    print(f"{path.name}: {'rewritten' if after != before else 'as it should be'}", file=sys.stderr)
    return 0


def code_of(text: str) -> dict[str, list[str]]:
    """By stage of this dvc.yaml: the files and folders of code that its commands import."""
    return {name: gather(closure(_modules(stage["cmd"]))) for name, stage in yaml.safe_load(text)["stages"].items()}


def closure(modules: Iterable[str]) -> set[str]:
    """Files, relative to the root, of these modules and of all they import from the project."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        path = _file(module)
        name = path and path.relative_to(ROOT).as_posix()
        if path is None or name in found:
            continue
        found.add(str(name))
        todo += _imports(path)
        # Importing a module runs the packages it lies in.
        todo += [module.rpartition(".")[0]] if "." in module else []
    return {name for name in found if (ROOT / name).stat().st_size}


def gather(files: set[str]) -> list[str]:
    """The same with a package's folder in place of its modules where more than half of them are there.

    That asks for a run too many now and then, never for one too few.
    """
    kept = set(files)
    for folder in sorted(path.parent for path in (ROOT / "pipeline").glob("*/__init__.py")):
        inside = {p.relative_to(ROOT).as_posix() for p in folder.rglob("*.py") if p.stat().st_size}
        if 2 * len(inside & kept) > len(inside):
            kept = kept - inside | {folder.relative_to(ROOT).as_posix()}
    return sorted(kept)


def rewrite(text: str, code: dict[str, list[str]]) -> str:
    """dvc.yaml with each stage's dependencies on code replaced; all else, comments included, as it was."""
    lines, stage, inside = [], "", False
    for line in text.splitlines():
        key = line.strip().removesuffix(":")
        if line.startswith("  ") and not line.startswith("   ") and key in code:
            stage, inside = key, False
        elif inside and not line.startswith("      - "):
            lines += [f"      - {name}" for name in code[stage]]
            inside = False
        elif line == "    deps:":
            inside = True
        if not (inside and line.startswith(tuple(f"      - {package}" for package in PACKAGES))):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _modules(commands: str | list[str]) -> Iterator[str]:
    for command in [commands] if isinstance(commands, str) else commands:
        program, name, *_ = command.split()
        if program == "kdpipe":
            yield COMMANDS[name][0].partition(":")[0]


@cache
def _imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file(module: str) -> Path | None:
    """A module's file; None if it is no module of the project."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    path = ROOT.joinpath(package, *rest)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


if __name__ == "__main__":
    sys.exit(main())
