"""A sample's label: where it stands, and which number it is."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from kdpipe._util.files import read_bounded
from kdpipe._util.untrusted import load_json
from kdpipe.errors import ConfigError, ShardError
from kdpipe.shards.classes import ClassMap
from kdpipe.shards.document import MAX_CLASSES
from kdpipe.shards.tar import Member

Check = Literal["decode", "header"]
UNLABELLED, LEFT_OUT = -1, -2
MAX_LABEL = MAX_CLASSES - 1
# Of a .cls, white space included; of a text that is looked up in a class map; of a .json; of a table of labels.
_NUMBER_BYTES, _NAME_BYTES, _JSON_BYTES, _TABLE_BYTES = 64, 2**12, 2**24, 2**30
_INTEGER = re.compile(r"[+-]?[0-9]+")
_KEY_FORM = "a suffix of members, as cls or output.cls or *.cls, or a field of JSON, as json:label or json:a.b"

Reader = Callable[[Member], bytes]


@dataclass(frozen=True)
class Rules:
    """What a sample must be like to be indexed.

    Attributes:
        num_classes: labels must be below it.
        label_key: SUFFIX, or SUFFIX:FIELD for a field of JSON; by default `.cls`, or the field "label" of `.json`.
            The suffix may have wildcards.
        image_key: suffix of the image, where samples have several; it may have wildcards.
        check: "decode" every image, or read its "header" only.
        class_map: labels are these names.
        table: labels by key, instead of those in the tar.
        alt_label: field of `.json` that timm's manifest names; negative ones leave the sample out.
    """

    num_classes: int | None = None
    label_key: str | None = None
    check: Check = "decode"
    image_key: str | None = None
    class_map: ClassMap | None = None
    table: Mapping[str, str] | None = None
    alt_label: str | None = None

    def __post_init__(self) -> None:
        if self.label_key is not None and not re.fullmatch(r"[^:]+(:.+)?", self.label_key):
            raise ConfigError("no place of labels", where="label_key", found=self.label_key, allowed=_KEY_FORM)


def matching(members: Mapping[str, Member], pattern: str) -> list[Member]:
    """Members whose suffix is the pattern, or one of several joined by ";"; wildcards are allowed."""
    patterns = [one.lstrip(".").lower() for one in pattern.split(";")]
    return [member for suffix, member in members.items() if any(fnmatchcase(suffix, one) for one in patterns)]


def read_label(key: str, members: Mapping[str, Member], read: Reader, rules: Rules, bad: Callable[..., Any]) -> int:
    """The number of a sample's class, UNLABELLED, or LEFT_OUT where timm's manifest leaves such samples out.

    Args:
        key: the sample's.
        members: its members by suffix.
        read: the bytes of a member.
        rules: where labels are.
        bad: makes the error for this sample.

    Raises:
        BadSample: from `bad`, where there is a label that can't be used.
    """
    if rules.table is not None:
        value: Any = rules.table.get(key)
        return UNLABELLED if value is None else _number(value, rules, bad, "the label, from the table,", None)
    place, field = _place(members, rules, bad)
    if place is not None and place.problem:
        raise bad(f"member .{place.suffix} is {place.problem}", place.offset, do=WRITE_IN_FULL)
    value = None
    if place is not None:
        value = _field(place, read, field, bad) if field else _text(place, read, rules, bad)
    if value is None and rules.alt_label is not None:
        raise bad("no alt_label", allowed=f"field {rules.alt_label!r} of .json, which timm's manifest names")
    if value is None or place is None:
        return UNLABELLED
    what = f"the label, field {field!r} of .{place.suffix}," if field else "the label"
    number = _number(value, rules, bad, what, place)
    return LEFT_OUT if number == UNLABELLED and rules.alt_label is not None else number


def _place(members: Mapping[str, Member], rules: Rules, bad: Callable[..., Any]) -> tuple[Member | None, str]:
    """The member that has the label, and the field of its JSON, "" where it is text."""
    if rules.alt_label is not None:
        return members.get("json"), rules.alt_label
    if rules.label_key is None:
        return (members["cls"], "") if "cls" in members else (members.get("json"), "label")
    suffix, _, field = rules.label_key.partition(":")
    several = matching(members, suffix)
    if len(several) > 1:
        names = " ".join(f".{member.suffix}" for member in several)
        raise bad("several members are the label", found=names, allowed="one", do="Name one by --label-key")
    return several[0] if several else None, field


WRITE_IN_FULL = "Write the tar again with the files themselves: tar --dereference, without --sparse"


def _text(place: Member, read: Reader, rules: Rules, bad: Callable[..., Any]) -> str:
    most = _NUMBER_BYTES if rules.class_map is None else _NAME_BYTES
    if place.size > most:
        allowed = f"an integer in at most {most} bytes" if rules.class_map is None else f"at most {most} bytes"
        raise bad("the label is not an integer", place.offset, found=f"{place.size} bytes", allowed=allowed)
    return read(place).decode("utf-8-sig", "replace").strip()


def _field(place: Member, read: Reader, field: str, bad: Callable[..., Any]) -> Any:
    if place.size > _JSON_BYTES:
        found, allowed = f"{place.size} bytes", f"at most {_JSON_BYTES}"
        raise bad(f"member .{place.suffix} is too large", place.offset, found=found, allowed=allowed)
    try:
        tree = load_json(read(place).removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise bad(f"member .{place.suffix} is not JSON", place.offset, found=_short(str(error), 100)) from error
    return _at(tree, field)


def _at(tree: Any, field: str) -> Any:
    """A field, or one inside of others as in a.b; a name with a dot in it comes first."""
    if not isinstance(tree, dict):
        return None
    if field in tree:
        return tree[field]
    for at in (i for i, c in enumerate(field) if c == "."):
        if field[:at] in tree:
            return _at(tree[field[:at]], field[at + 1 :])
    return None


def _number(value: Any, rules: Rules, bad: Callable[..., Any], what: str, place: Member | None) -> int:
    where = () if place is None else (place.offset,)
    names, text = rules.class_map, str(value).strip() if isinstance(value, int | str) else ""
    if type(value) is bool:
        text = ""
    integer = _INTEGER.fullmatch(text) is not None and len(text) <= _NUMBER_BYTES * 8
    if integer and (names is None or not names.numeric):
        number = int(text)
    elif names is not None and text in names.numbers:
        number = names.numbers[text]
    elif names is not None and text != "-1":
        raise bad(f"{what} is no class of the class map", *where, found=_short(repr(value)))
    elif names is not None:
        number = UNLABELLED
    else:
        do = "Name another place by --label-key, or map names to numbers by --class-map"
        raise bad(f"{what} is not an integer", *where, found=_short(repr(value)), do=do)
    most = MAX_LABEL if rules.num_classes is None else rules.num_classes - 1
    if not UNLABELLED <= number <= most:
        why = None if rules.num_classes is None else "Their number is that of --num-classes or of the class list"
        allowed = f"0 to {most}, or -1 for none"
        raise bad("label out of range", *where, found=_short(repr(number)), allowed=allowed, do=why)
    return number


def load_table(path: Path) -> dict[str, str]:
    """Labels by key, of a .csv whose columns are key,label.

    Raises:
        ShardError: it can't be read, or gives a key two labels.
    """
    try:
        text = read_bounded(path, _TABLE_BYTES).decode("utf-8-sig")
        found: dict[str, str] = {}
        for key, label in _rows(text):
            if found.setdefault(key, label) != label:
                raise ShardError("a key with two labels", where=path, found=f"{key!r}: {found[key]!r} and {label!r}")
    except OSError as error:
        raise ShardError(f"the labels can't be read ({error.strerror or error})", where=path) from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"not a table of labels ({error})", where=path, allowed="a .csv of key,label") from error
    return found


def _rows(text: str) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        if not row:
            continue
        if len(row) < 2:
            raise ValueError(f"row {number + 1} has {len(row)} column")
        if number == 0 and row[1].strip().lower() in ("label", "class", "target", "cls"):
            continue
        yield row[0].strip(), row[1].strip()


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
