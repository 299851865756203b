"""Class names: read from the lists that people have, and compared wherever two parts of a run know them.

A class list is a list of names; a class's number is its place in the list. A class map also has other names of a class,
such as wnid and words.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from kdpipe._util.files import read_bounded
from kdpipe._util.untrusted import load_json
from kdpipe.errors import IdentityError, ShardError

# Of a file of names; no set of classes is near it.
MAX_BYTES, MAX_CLASSES, MAX_NAME = 2**26, 2**24, 256
CLASSES = "classes.json"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
Pairs = list[tuple[Any, Any]]
_FORMS = (
    "a .json list of names, an object of names to numbers or of numbers to names; a .csv of name,number; "
    "or a .txt with a name a line"
)


@dataclass(frozen=True)
class ClassMap:
    """Numbers of classes by their names. `names` is the class list, None where numbers are left out."""

    numbers: Mapping[str, int]
    names: list[str] | None
    # Whether labels that are integers are looked up: they are names in a map from names to numbers that has integers
    # among the names. In a list of names, as of folders 1 to 12, an integer is a number.
    numeric: bool = False

    @classmethod
    def of(cls, numbers: Mapping[str, int], mapping: bool = False) -> "ClassMap":
        """Of pairs; the class list has the first name of each number."""
        first: dict[int, str] = {}
        for name, number in numbers.items():
            first.setdefault(number, name)
        names = [first[i] for i in range(len(first))] if set(first) == set(range(len(first))) else None
        return cls(numbers, names, mapping and any(_INTEGER.fullmatch(name) for name in numbers))


def is_class_name(name: object) -> bool:
    """Whether a class may be called so: text on one line, of up to 256 characters."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME and not _CONTROL.search(name)


def _class_name(name: str) -> str:
    if not is_class_name(name):
        raise ValueError("not a class name")
    return name


ClassName = Annotated[str, AfterValidator(_class_name)]


def load_class_map(path: Path) -> ClassMap:
    """Read a class map from a file, see `_FORMS`; an index folder has one too.

    Raises:
        ShardError: it can't be read, is none of the forms, or gives a name two numbers.
    """
    try:
        data = read_bounded(path / "index.json" if path.is_dir() else path, MAX_BYTES)
    except OSError as error:
        raise ShardError(f"the class list can't be read ({error.strerror or error})", where=path) from error
    try:
        text = data.decode("utf-8-sig")
        mapping, suffix = False, path.suffix.lower()
        if path.is_dir():
            pairs, _ = _of_json(load_json(text).get("classes"))
        elif suffix == ".json":
            pairs, mapping = _of_json(load_json(text))
        elif suffix in (".csv", ".tsv"):
            pairs, mapping = _of_table(text, "\t" if suffix == ".tsv" else ",")
        else:
            pairs = [(line.strip(), i) for i, line in enumerate(text.rstrip().splitlines())]
        return ClassMap.of(_checked(pairs), mapping)
    except (ValueError, AttributeError, csv.Error) as error:
        raise ShardError(f"not a class list ({error})", where=path, allowed=_FORMS) from error


def _checked(pairs: Pairs) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for name, number in pairs:
        if not is_class_name(name):
            raise ValueError(f"{str(name)[:40]!r} is no name of 1 to {MAX_NAME} printable characters")
        if type(number) is not int or not 0 <= number < MAX_CLASSES:
            raise ValueError(f"{name[:40]!r} has the number {str(number)[:40]}, allowed are 0 to {MAX_CLASSES - 1}")
        if numbers.setdefault(name, number) != number:
            raise ValueError(f"{name[:40]!r} has two numbers, {numbers[name]} and {number}")
    if not numbers:
        raise ValueError("it has no names")
    return numbers


def _of_json(tree: Any) -> tuple[Pairs, bool]:
    """The pairs, and whether they map names to numbers."""
    if isinstance(tree, list):
        return [(name, i) for i, name in enumerate(tree)], False
    if not isinstance(tree, dict):
        raise ValueError("no list or object of names")
    if all(type(value) is int for value in tree.values()):
        return list(tree.items()), True
    pairs: Pairs = []
    for number, names in tree.items():  # as ImageNet's {"0": ["n01440764", "tench"], ...}
        if not _INTEGER.fullmatch(number):
            raise ValueError(f"{number[:40]!r} is no number")
        pairs += [(name, int(number)) for name in (names if isinstance(names, list) else [names])]
    return pairs, False


def _of_table(text: str, delimiter: str) -> tuple[Pairs, bool]:
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if rows and len(rows[0]) == 1:
        return [(row[0].strip(), i) for i, row in enumerate(rows)], False
    if rows and not any(_INTEGER.fullmatch(cell.strip()) for cell in rows[0]):
        rows = rows[1:]  # a header
    if any(len(row) < 2 for row in rows):
        raise ValueError("a row of one column among others")
    place = 1 if all(_INTEGER.fullmatch(row[1].strip()) for row in rows) else 0
    return [(row[1 - place].strip(), _integer(row[place].strip())) for row in rows], place == 1


def _integer(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text


def require_same(ours: Sequence[str] | None, theirs: Sequence[str] | None, where: object, whose: str) -> str | None:
    """Refuse two class lists that differ; a remark where one is known and the other is not.

    Args:
        ours: of the index.
        theirs, where, whose: of what is used with it.

    Raises:
        IdentityError: naming the first three classes that differ.
    """
    found = disagreement(ours, theirs)
    if found is not None:
        do = "Number the classes alike: kdpipe prepare folder --classes, or kdpipe index --class-map"
        what = f"the classes of the index and of {whose} have other names"
        raise IdentityError(what, where=where, found=found, do=do)
    if (ours is None) == (theirs is None):
        return None
    return f"class names are unknown in {'the index' if ours is None else whose}: their order isn't compared"


def disagreement(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> str | None:
    """What differs between two class lists: the first three numbers with other names, or the lengths.

    None where they agree or one is unknown.
    """
    if ours is None or theirs is None or list(ours) == list(theirs):
        return None
    other = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if not other:
        return f"{len(ours)} classes and {len(theirs)}"
    shown = ", ".join(f"{i} is {ours[i]!r} and {theirs[i]!r}" for i in other[:3])
    return shown + (f" and {len(other) - 3} more" if len(other) > 3 else "")
