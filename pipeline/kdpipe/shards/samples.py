"""Members grouped into samples, as webdataset groups them, with everything checked that it takes on trust."""

import mmap
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from kdpipe._util.untrusted import load_json
from kdpipe.errors import ImageError, ShardError
from kdpipe.shards import images
from kdpipe.shards.document import MAX_CLASSES
from kdpipe.shards.tar import Member

Check = Literal["decode", "header"]
UNLABELLED = -1
MAX_LABEL = MAX_CLASSES - 1
# Of a .cls, white space included, and of a .json.
_CLS_BYTES, _JSON_BYTES = 64, 2**24
_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sound sample: its bytes in the tar, its image's bytes, its label (-1 for none)."""

    key: str
    start: int
    stop: int
    image_start: int
    image_size: int
    label: int


@dataclass(frozen=True)
class Rules:
    """What a sample must be like to be indexed."""

    num_classes: int | None = None
    label_key: str | None = None
    check: Check = "decode"


class BadSample(ShardError):
    """A sample that can't be indexed: which, and where it starts."""

    def __init__(self, url: str, key: str, offset: int, what: str, **details: Any) -> None:
        # A key that isn't UTF-8 is shown escaped, since the message has to be printable.
        self.key, self.offset = key.encode("utf-8", "backslashreplace").decode(), offset
        super().__init__(what, where=f"{url}, sample {self.key!r}, byte {offset}", **details)
        self.reason = str(ShardError(what, **details))


Group = list[Member]


def grouped(members: Iterable[Member]) -> list[Group]:
    """Runs of adjacent members with one key."""
    return [list(group) for _, group in groupby(members, key=lambda member: member.key)]


def clashes(groups: list[Group], url: str) -> dict[str, BadSample]:
    """Keys that come more than once, each with its error: a duplicate, or a sample torn in two."""
    first: dict[str, Group] = {}
    found: dict[str, BadSample] = {}
    for group in groups:
        key, offset = group[0].key, group[0].offset
        before = first.setdefault(key, group)
        if before is group or key in found:
            continue
        again = {m.suffix for m in before} & {m.suffix for m in group}
        what = "duplicate key" if again else "the members of one sample are not adjacent"
        do = None if again else "Write the members of each sample one after the other"
        found[key] = BadSample(url, key, offset, what, found=f"the key at byte {before[0].offset} too", do=do)
    return found


def examine(group: Group, data: mmap.mmap, url: str, rules: Rules) -> Sample:
    """Check one group of members and make a sample of it.

    Raises:
        BadSample: no image, several, one that is none or corrupt, a member twice, a bad key or label.
    """
    key, offset = group[0].key, group[0].offset

    def bad(what: str, at: int = offset, **details: Any) -> BadSample:
        return BadSample(url, key, at, what, **details)

    if not key.isascii():
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise bad("the key is not UTF-8") from error
    by_suffix: dict[str, Member] = {}
    for member in group:
        other = by_suffix.setdefault(member.suffix, member)
        if other is not member:
            raise bad(f"two members .{member.suffix}", member.offset, found=f"the first at byte {other.offset}")
    image = _image(group, data, bad)
    view = memoryview(data)[image.start : image.start + image.size]
    try:
        if rules.check == "decode":
            images.verify(view)
        else:
            images.check(view)
    except ImageError as error:
        raise bad(error.what, image.offset, found=error.found, allowed=error.allowed, do=error.do) from error
    finally:
        view.release()
    label = _label(by_suffix, data, rules, bad)
    return Sample(key, offset, max(m.stop for m in group), image.start, image.size, label)


def _image(group: Group, data: mmap.mmap, bad: Callable[..., BadSample]) -> Member:
    found = []
    for member in group:
        head = data[member.start : member.start + min(member.size, 12)]
        if images.identify(head):
            found.append(member)
        elif member.suffix.rpartition(".")[2] in images.EXTENSIONS:
            shown = f"first bytes {head[:8].hex(' ')}" if head else "an empty file"
            raise bad(f"member .{member.suffix} is not a JPEG, PNG or WebP image", member.offset, found=shown)
    if not found:
        raise bad("no image in the sample", found=" ".join(f".{m.suffix}" for m in group))
    if len(found) > 1:
        raise bad("several images in one sample", found=" ".join(f".{m.suffix}" for m in found), allowed="one")
    return found[0]


def _label(members: dict[str, Member], data: mmap.mmap, rules: Rules, bad: Callable[..., BadSample]) -> int:
    value: Any
    place = members.get("cls") if rules.label_key is None else None
    if place is not None:
        if place.size > _CLS_BYTES:
            found, allowed = f"{place.size} bytes", f"an integer in at most {_CLS_BYTES} bytes"
            raise bad("the label is not an integer", place.offset, found=found, allowed=allowed)
        text = data[place.start : place.start + place.size]
        if not _INTEGER.fullmatch(text):
            raise bad("the label is not an integer", place.offset, found=_shown(text.decode("utf-8", "replace")))
        value = int(text)
    elif (place := members.get("json")) is not None:
        if place.size > _JSON_BYTES:
            found, allowed = f"{place.size} bytes", f"at most {_JSON_BYTES}"
            raise bad("member .json is too large", place.offset, found=found, allowed=allowed)
        try:
            fields = load_json(data[place.start : place.start + place.size])
        except ValueError as error:
            raise bad("member .json is not JSON", place.offset, found=_short(str(error), 100)) from error
        value = fields.get(rules.label_key or "label") if isinstance(fields, dict) else None
        if value is None:
            return UNLABELLED
        if type(value) is not int:
            what = f"the label, field {rules.label_key or 'label'!r} of .json, is not an integer"
            raise bad(what, place.offset, found=_shown(value), do="Name an integer field by --label-key")
    else:
        return UNLABELLED
    most = MAX_LABEL if rules.num_classes is None else rules.num_classes - 1
    if not 0 <= value <= most:
        raise bad("label out of range", place.offset, found=_shown(value), allowed=f"0 to {most}")
    return int(value)


def _shown(value: object) -> str:
    return _short(repr(value))


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
