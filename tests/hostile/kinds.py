"""What a hostile file is: how it is made of a sound one, and which commands look at what is hostile in it."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import CODE
from tests.hostile.world import World

MARKER = "marker"  # beside the hostile file: what a command of it would leave
DEEP = "[" * 100_000
DIGITS = "9" * 5000
CONTROL = "a\x1b[31m\nb"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


@dataclass(frozen=True)
class Kind:
    """A hostile file.

    Attributes:
        name: of the kind, unique within its category.
        make: puts it below a new folder and returns its path.
        refused_by: commands that must refuse it; None for all that take such a file. Others may take it, for what they
            read of it is sound; that they run nothing, write nothing elsewhere and end in time is asked of all.
    """

    name: str
    make: Callable[[World, Path], Path]
    refused_by: frozenset[str] | None = None


def nobody() -> frozenset[str]:
    """For what is odd, but can be taken as it is."""
    return frozenset()


def only(*commands: str) -> frozenset[str]:
    return frozenset(commands)


def code(folder: Path) -> list[dict[str, Any]]:
    """What describes a model that is no model: the harm that the name stands for, and one that is noticed."""
    shell = {"model": "os:system", "model_kwargs": {"command": f"touch {folder / MARKER}"}}
    return [shell, {"model": CODE, "model_kwargs": {}}]


def text(name: str, content: str | bytes, file: str, **more: Any) -> Kind:
    """A file of this content."""

    def make(world: World, folder: Path) -> Path:
        path = folder / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return Kind(name, make, **more)


def trees(
    file: str,
    sound: Callable[[World], Any],
    changes: Iterable[tuple[str, Callable[[Any, Path], Any]] | tuple[str, Callable[[Any, Path], Any], frozenset[str]]],
) -> list[Kind]:
    """JSON files: changes of the sound document, with their names and who must refuse them; and text of other kinds."""

    def kind(name: str, change: Callable[[Any, Path], Any], refused_by: frozenset[str] | None = None) -> Kind:
        def make(world: World, folder: Path) -> Path:
            tree = json.loads(json.dumps(sound(world)))
            (folder / file).write_text(json.dumps(change(tree, folder)))
            return folder / file

        return Kind(name, make, refused_by)

    damaged = [text("deep", DEEP, file), text("digits", f'{{"a": {DIGITS}}}', file), text("no-utf8", b"\xff{}", file)]
    return [*(kind(*change) for change in changes), *damaged, text("array", "[]", file)]


def put(*path: Any, value: Any) -> Callable[[Any, Path], Any]:
    """A change of a tree: another value at a place."""

    def change(tree: Any, folder: Path) -> Any:
        *above, last = path
        inside = tree
        for key in above:
            inside = inside[key]
        inside[last] = value(folder) if callable(value) else value
        return tree

    return change
