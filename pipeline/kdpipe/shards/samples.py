"""Members grouped into samples, as webdataset groups them, with everything checked that it takes on trust."""

import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kdpipe.errors import ImageError, ShardError
from kdpipe.shards import images
from kdpipe.shards.labels import UNLABELLED, WRITE_IN_FULL, Rules, matching, read_label
from kdpipe.shards.tar import Member

# What is indexed of an image that is a hard link spans the block and the member that it links to.
_FARTHEST = 2**26


@dataclass(frozen=True, slots=True)
class Sample:
    """One sound sample: its bytes in the tar, its image's bytes, its label (-1 for none)."""

    key: str
    start: int
    stop: int
    image_start: int
    image_size: int
    label: int
    unused: tuple[str, ...] = ()  # of an unlabelled sample: suffixes of members that might be its label


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
    image = _image(by_suffix, data, rules, bad)
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

    def read(member: Member) -> bytes:
        return data[member.start : member.start + member.size]

    label = read_label(key, by_suffix, read, rules, bad)
    unused = tuple(s for s, m in by_suffix.items() if m is not image) if label == UNLABELLED else ()
    return Sample(key, offset, max(m.stop for m in group), image.start, image.size, label, unused)


def _image(members: dict[str, Member], data: mmap.mmap, rules: Rules, bad: Callable[..., BadSample]) -> Member:
    chosen = list(members.values()) if rules.image_key is None else matching(members, rules.image_key)
    found = []
    for member in chosen:
        expected = member.suffix.rpartition(".")[2] in images.EXTENSIONS or rules.image_key is not None
        if member.problem:
            if expected:
                raise bad(f"member .{member.suffix} is {member.problem}", member.offset, do=WRITE_IN_FULL)
            continue
        head = data[member.start : member.start + min(member.size, 12)]
        if images.identify(head):
            found.append(member)
        elif expected:
            shown = f"first bytes {head[:8].hex(' ')}" if head else "an empty file"
            other = images.other_format(head)
            do = f"It is {other}: {images.CONVERT}" if other else None
            what = f"member .{member.suffix} is not a JPEG, PNG or WebP image"
            raise bad(what, member.offset, found=shown, do=do)
    if not found:
        do = "Leave files that are no samples out of the tar, or skip them by --skip-bad"
        allowed = None if rules.image_key is None else f"--image-key {rules.image_key}"
        raise bad("no image in the sample", found=_names(members.values()), allowed=allowed, do=do)
    if len(found) > 1:
        do = "Choose one by --image-key"
        if all("." in member.suffix for member in found):
            do = "Keys end at the first dot of a file name: write other names, as img_0001.jpg for img.0001.jpg"
        raise bad("several images in one sample", found=_names(found), allowed="one", do=do)
    if found[0].start + _FARTHEST < found[0].offset:
        what = f"member .{found[0].suffix} is a hard link to a member more than {_FARTHEST} bytes before"
        raise bad(what, found[0].offset, do="Write the tar again with the file itself: tar --hard-dereference")
    return found[0]


def _names(members: Iterable[Member]) -> str:
    some = [f".{member.suffix}" for member in members]
    return " ".join(some[:8]) + (f" and {len(some) - 8} more" if len(some) > 8 else "")
