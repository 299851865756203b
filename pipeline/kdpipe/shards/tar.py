"""The members of a tar file with their places, read by Python's `tarfile` over a memory map."""

import mmap
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.errors import ShardError

RECORD = 512
_UNPACK = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
# As webdataset's base_plus_ext: the key goes up to the first dot of the file name. Hidden files (macOS adds many)
# have none; webdataset's own pattern makes samples of those that lie in folders.
_KEY = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")
# As webdataset's tar_file_iterator: its own metadata.
_META = re.compile(r"__[^/]*__($|/)")

_AGAIN = "Copy or write it again, or pass --skip-bad to keep the samples before the cut"
_HEADER = "Copy or write it again, or pass --skip-bad to keep the samples before the damage"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: its header at byte `offset`, its data at `start`."""

    key: str
    suffix: str  # lower case, without the leading dot; "" for a name that ends in a dot
    offset: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        """Where its data ends, padded to whole records."""
        return -(-(self.start + self.size) // RECORD) * RECORD


class Damage(ShardError):
    """The tar is cut or damaged at byte `offset`; the members before it are sound."""

    def __init__(
        self, url: str, offset: int, what: str, *, found: object = None, do: str, key: str | None = None
    ) -> None:
        super().__init__(what, where=f"{url}, byte {offset}", found=found, do=do)
        self.offset = offset
        self.key = key  # of the sample that was cut, if it can be told
        self.reason = str(ShardError(what, found=found))


def members(data: mmap.mmap, url: str) -> Iterator[Member]:
    """The members that belong to samples, in order; hidden files, links and folders are passed over.

    Raises:
        ShardError: compressed, or not a tar at all.
        Damage: after the last sound member, when the file is truncated (if only by its end marker), a
            header is damaged, or something follows the marker.
    """
    for magic, command in _UNPACK.items():
        if data[: len(magic)] == magic:
            raise ShardError("the tar is compressed", where=url, do=f"Unpack it first: {command} {url}")
    if len(data) < RECORD:
        raise Damage(url, 0, "the tar is truncated", found=f"{len(data)} bytes in all", do=_AGAIN)
    try:
        tar = tarfile.open(fileobj=data, mode="r:", encoding="utf-8")  # noqa: SIM115
    except MemoryError:
        raise
    except Exception as error:  # a header can bring `tarfile` to raise almost anything
        raise ShardError("not a tar file", where=url, found=f"first bytes {data[:8].hex(' ')}") from error
    with tar:
        while (info := _next(tar, url, len(data))) is not None:
            named = _KEY.match(info.name)
            if info.isreg() and named and not _META.match(info.name):
                if info.issparse():
                    raise ShardError("a sparse member", where=f"{url}, byte {info.offset}", do="Write it in full")
                yield Member(named[1], named[2].lower(), info.offset, info.offset_data, info.size)
        _check_end(data, tar.offset, url)


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
    if info is not None and info.offset_data + info.size > size:
        what, found = (
            f"the tar is truncated inside {info.name!r}",
            f"{size - info.offset_data} of its {info.size} bytes",
        )
        named = _KEY.match(info.name)
        raise Damage(url, info.offset, what, found=found, do=_AGAIN, key=named[1] if named else None)
    return info


def _check_end(data: mmap.mmap, end: int, url: str) -> None:
    """`tarfile` stops without a word at the end of the file, at damage and at a marker: which was it?"""
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
