"""The members of a tar file with their places, read by Python's `tarfile` over a memory map."""

import mmap
import posixpath
import re
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.errors import ShardError
from kdpipe.shards.sources import is_local, name_of

RECORD = 512
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
# What lies in the place of shards: how it begins, what it is, and what helps.
_FETCH = "Download the shard again, and look at its address and your access"
_OTHERS = (
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer instead of the shard", "Fetch it: git lfs pull"),
    (b"<!doctype html", "an HTML page instead of the shard", _FETCH),
    (b"<html", "an HTML page instead of the shard", _FETCH),
    (b"<?xml", "an XML page instead of the shard", _FETCH),
    (b"pk\x03\x04", "a zip archive", "Unpack it, and write a tar of its files"),
)
# As webdataset's base_plus_ext: the key goes up to the first dot of the file name. Hidden files (macOS adds many)
# have none; webdataset's own pattern makes samples of those that lie in folders.
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")
# As webdataset's tar_file_iterator: its own metadata.
_META = re.compile(r"__[^/]*__($|/)")

_AGAIN = "Copy or write it again, or pass --skip-bad to keep the samples before the cut"
_HEADER = "Copy or write it again, or pass --skip-bad to keep the samples before the damage"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its header at byte `offset`, its data at `start`, the next header at `stop`.

    The data of a hard link are those of the member that it links to.
    """

    key: str
    suffix: str  # lower case, without the leading dot; "" for a name that ends in a dot
    offset: int
    start: int
    size: int
    stop: int
    problem: str = ""  # why there are no data: what is stored instead of them


class UnusableShard(ShardError):
    """Nothing of a shard can be used: it is no tar, or has no samples."""

    @property
    def reason(self) -> str:
        """The message without the place."""
        return str(ShardError(self.what, found=self.found))


class Damage(ShardError):
    """The tar is cut or damaged at byte `offset`; the members before it are sound."""

    def __init__(
        self, url: str, offset: int, what: str, *, found: object = None, do: str, key: str | None = None
    ) -> None:
        super().__init__(what, where=f"{url}, byte {offset}", found=found, do=do)
        self.offset = offset
        self.key = key  # of the sample that was cut, if it is known
        self.reason = str(ShardError(what, found=found))


def members(data: mmap.mmap, url: str) -> Iterator[Member]:
    """The members that belong to samples, in order; hidden files and folders are passed over.

    Raises:
        UnusableShard: compressed, or not a tar at all.
        Damage: after the last sound member, when the file is truncated (if only by its end marker), a
            header is damaged, or something follows the marker.
    """
    _refuse_others(data, url)
    if len(data) < RECORD:
        raise Damage(url, 0, "the tar is truncated", found=f"{len(data)} bytes in all", do=_AGAIN)
    if not any(data[:RECORD]):
        _check_end(data, 0, url)
        raise UnusableShard("the tar is empty", where=url, found=f"{len(data)} bytes, all zero")
    try:
        tar = tarfile.open(fileobj=data, mode="r:", encoding="utf-8")  # noqa: SIM115
    except MemoryError:
        raise
    except Exception as error:  # a header can bring `tarfile` to raise almost anything
        raise UnusableShard("not a tar file", where=url, found=f"first bytes {data[:8].hex(' ')}") from error
    files: dict[str, Member] = {}  # by path: what hard links refer to
    with tar:
        while (info := _next(tar, url, len(data))) is not None:
            member = _member(info, tar.offset, files)
            if info.isreg() and member is not None:
                files[posixpath.normpath(info.name)] = member
            if member is not None and _KEY.match(info.name) and not _META.match(info.name):
                yield member
        _check_end(data, tar.offset, url)


def _refuse_others(data: mmap.mmap, url: str) -> None:
    for magic, command in _COMPRESSED.items():
        if data[: len(magic)] == magic:
            name = shlex.quote(url if is_local(url) else name_of(url))  # the tools refuse the suffix .tar
            do = f"Unpack it first: {command} < {name} > {shlex.quote(name_of(url).removesuffix('.tar'))}-unpacked.tar"
            raise UnusableShard("the tar is compressed", where=url, do=do)
    head = data[:RECORD].lstrip().lower()
    for begin, what, do in _OTHERS:
        if head.startswith(begin):
            raise UnusableShard(what, where=url, found=f"{len(data)} bytes", do=do)


def _member(info: tarfile.TarInfo, stop: int, files: dict[str, Member]) -> Member | None:
    """A file or a link; None for folders and devices."""
    named = _KEY.match(info.name)
    key, suffix = (named[1], named[2].lower()) if named else ("", "")
    start, size, problem = info.offset_data, info.size, ""
    if info.issparse():
        size, problem = 0, "stored sparse, in pieces"
    elif info.issym():
        size, problem = 0, f"a symbolic link to {info.linkname!r}"
    elif info.islnk():
        target = files.get(posixpath.normpath(info.linkname))
        if target is None:
            size, problem = 0, f"a hard link to {info.linkname!r}, which doesn't come before it"
        else:
            start, size, problem = target.start, target.size, target.problem
    elif not info.isreg():
        return None
    return Member(key, suffix, info.offset, start, size, stop, problem)


def _next(tar: tarfile.TarFile, url: str, size: int) -> tarfile.TarInfo | None:
    place = min(tar.offset, size)
    try:
        info = tar.next()
    except MemoryError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise Damage(url, place, "the tar is truncated", found=f"{size} bytes in all", do=_AGAIN) from error
    except Exception as error:  # such as RecursionError, of headers that announce headers
        raise Damage(url, place, "the tar is damaged: a member's header can't be read", do=_HEADER) from error
    tar.members = []  # type: ignore[attr-defined]  # it would keep every one
    if info is not None and (info.size < 0 or tar.offset < info.offset_data):  # which would come by here for ever
        raise Damage(url, place, "the tar is damaged: a member of negative size", found=info.size, do=_HEADER)
    if info is None:
        return None
    held = 0 if info.issym() or info.islnk() else tar.offset - info.offset_data if info.issparse() else info.size
    if info.offset_data + held > size:
        what, found = (
            f"the tar is truncated inside {info.name!r}",
            f"{size - info.offset_data} of its {held} bytes",
        )
        named = _KEY.match(info.name)
        raise Damage(url, info.offset, what, found=found, do=_AGAIN, key=named[1] if named else None)
    return info


def _check_end(data: mmap.mmap, end: int, url: str) -> None:
    """`tarfile` stops without an error at the end of the file, at damage and at a marker: which was it?"""
    marker = data[end : end + RECORD]
    if len(marker) < RECORD:
        what = "the tar is truncated: its end-of-archive marker is missing"
        if any(marker):
            what = "the tar is truncated inside a member's header"
        raise Damage(url, end, what, found=f"{len(data)} bytes in all", do=_AGAIN)
    if any(marker):
        raise Damage(url, end, "the tar is damaged: a member's header can't be read", do=_HEADER)
    for at in range(end, len(data), 1 << 20):
        if any(data[at : at + (1 << 20)]):
            do = "Tars can't be joined by cat: index the parts, or pass --skip-bad to leave the rest out"
            raise Damage(url, end, "more bytes follow the tar's end-of-archive marker", do=do)
