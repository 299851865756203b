"""A folder with one folder of images a class: which files are samples, of which classes, and what is wrong."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dask.base import compute
from dask.delayed import delayed

from kdpipe.errors import ConfigError, ImageError, KdpipeError, ShardError
from kdpipe.shards import images
from kdpipe.shards.classes import ClassMap, is_class_name
from kdpipe.shards.convert import Lossless, reencoded
from kdpipe.shards.pack import Item
from kdpipe.shards.problems import MOST

ClassOrder = Literal["plain", "natural"]
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
# Folders that systems make by themselves.
_SYSTEM = {"__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", "@eaDir"}
_WANTED = "a folder with one folder of images a class"
_ROUND = 256  # images, between looks at how many are bad


@dataclass
class Found:
    """What is in a folder.

    Attributes:
        classes: their names; a class's number is its place.
        items: the samples, in the order of their paths.
        problems: what is bad, by the path below the folder.
        ignored: files and folders that no sample can be, counted by their kind.
        converted: what is encoded again: file, from, to.
        remarks: what somebody should know, a line each.
    """

    classes: list[str]
    items: list[Item] = field(default_factory=list)
    problems: list[tuple[str, KdpipeError]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    converted: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def natural_key(name: str) -> tuple[list[int | str], str]:
    """timm's order of class folders: digits as numbers, letters without their case."""
    parts: list[int | str] = [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", name.lower())]
    return parts, name


def look_through(root: Path, classes: ClassMap | None, order: ClassOrder) -> Found:
    """The samples of a folder by their paths; no file is opened.

    Args:
        root: the folder.
        classes: the numbers of the folders' names; by default their place in the order.
        order: torchvision's, plain, or timm's, natural.

    Raises:
        ShardError: no such folder, no class folders, or splits in their place.
    """
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise ShardError("no such folder", where=root, allowed=_WANTED) from error
    folders = [p for p in entries if p.is_dir() and not p.name.startswith(".") and p.name not in _SYSTEM]
    if not folders:
        raise ShardError("no class folders", where=root, allowed=_WANTED)
    if len(_SPLITS & {p.name.lower() for p in folders}) == len(folders):
        names = ", ".join(path.name for path in folders)
        do = "Prepare each, all but the first with --classes and the classes.json of the first"
        raise ShardError("these are splits, not classes", where=root, found=names, do=do)
    found, taken = Found([]), Counter[str]()
    usable: dict[str, list[Path]] = {}
    for path in entries:
        if path in folders:
            images_in = _images(path, root, found)
            if _is_class(path, bool(images_in), classes, found):
                usable[path.name] = images_in
        elif path.suffix[1:].lower() in images.EXTENSIONS and not path.name.startswith("."):
            found.problems.append((path.name, ShardError("an image outside of the class folders", where=path)))
        else:
            found.ignored[_kind(path)] += 1
    found.classes = _ordered(list(usable), order, found) if classes is None else list(classes.names or [])
    numbers = {name: i for i, name in enumerate(found.classes)} if classes is None else classes.numbers
    for name, paths in usable.items():
        for path in paths:
            below = path.relative_to(root)
            try:
                found.items.append(Item(_key(below, taken), path, numbers[name]))
            except ShardError as error:
                found.problems.append((str(below), error))
    return found


def _images(folder: Path, root: Path, found: Found) -> list[Path]:
    kept = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_dir() or any(part in _SYSTEM or part.startswith(".") for part in inside[:-1]):
            continue
        if path.name.startswith(".") or path.suffix[1:].lower() not in images.EXTENSIONS or not path.is_file():
            found.ignored[_kind(path)] += 1
        else:
            kept.append(path)
    return kept


def _kind(path: Path) -> str:
    if path.is_dir():
        return f"folder {path.name}"
    return "hidden files" if path.name.startswith(".") else f"{path.suffix.lower() or 'files without suffix'}"


def _is_class(path: Path, filled: bool, classes: ClassMap | None, found: Found) -> bool:
    error = None
    if not is_class_name(path.name):
        error = ShardError("a folder's name is no name of a class", where=path, do="Rename it")
    elif not filled:
        error = ShardError("no images in a class folder", where=path, do="Remove it, or leave it out by --skip-bad")
    elif classes is not None and path.name not in classes.numbers:
        what, do = "a folder that is no class of the class list", "Correct --classes, or leave it out by --skip-bad"
        error = ShardError(what, where=path, allowed=", ".join(list(classes.numbers)[:5]) + ", ...", do=do)
    if error is not None:
        found.problems.append((path.name, error))
    return error is None


def _ordered(names: list[str], order: ClassOrder, found: Found) -> list[str]:
    plain, natural = sorted(names), sorted(names, key=natural_key)
    chosen, other = (plain, natural) if order == "plain" else (natural, plain)
    if plain != natural:
        at = next(i for i, (a, b) in enumerate(zip(chosen, other, strict=True)) if a != b)
        whose, option = ("timm's", "natural") if order == "plain" else ("torchvision's", "plain")
        found.remarks.append(
            f"class {at} is {chosen[at]!r}, but {other[at]!r} in {whose} order; for a teacher that was trained with "
            f"that, pass --class-order {option}"
        )
    return chosen


def _key(path: Path, taken: Counter[str]) -> str:
    """A key that webdataset reads back as it is: without dots, unlike its own `__metadata__`, and unique."""
    key = re.sub(r"^_+", "", path.with_suffix("").as_posix().replace(".", "_"))
    try:
        key.encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise ShardError("a file name is not UTF-8", where=shown, do="Rename it") from error
    while taken[key]:  # a.jpg beside a.png
        taken[key] += 1
        key = f"{key}-{taken[key]}"
    taken[key] = 1
    return key


def decode_all(
    found: Found,
    *,
    root: Path,
    convert: Lossless | None,
    keep_truncated: bool,
    skip_bad: bool,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Decode every image; the bad ones become problems, and those that are encoded again record it.

    Without `skip_bad` it ends when there are as many problems as are listed at once.
    """
    good: list[Item] = []
    for at in range(0, len(found.items), _ROUND):
        part = found.items[at : at + _ROUND]
        tasks = [delayed(_look, pure=False)(item, convert, keep_truncated) for item in part]
        results: Sequence[Item | KdpipeError] = compute(*tasks, scheduler="threads", num_workers=workers)
        for item, result in zip(part, results, strict=True):
            below = str(Path(os.fspath(item.image)).relative_to(root)) if isinstance(item.image, Path) else item.key
            if isinstance(result, KdpipeError):
                found.problems.append((below, result))
                continue
            good.append(result)
            if result.convert is not None:
                found.converted.append({"file": below, "key": result.key, "from": result.was, "to": result.convert})
        progress(at + len(part), len(found.items))
        if not skip_bad and len(found.problems) >= MOST:
            break
    found.items = good


def _look(item: Item, convert: Lossless | None, keep_truncated: bool) -> Item | KdpipeError:
    assert isinstance(item.image, Path)
    try:
        data = item.image.read_bytes()
        kind, other = images.identify(data), images.other_format(data[:12])
        if kind is None and other is not None and convert is not None:
            reencoded(data, convert)
            return replace(item, convert=convert, was=other)
        try:
            images.verify(data)
        except ImageError:
            if not (keep_truncated and kind == "jpeg"):
                raise
            lossless: Lossless = convert or "png"
            images.verify(reencoded(data, lossless))
            return replace(item, convert=lossless, was="truncated JPEG")
    except ImageError as error:
        do = error.do or (f"It is {other}: pass --convert png" if kind is None and other else None)
        if kind == "jpeg" and "truncated" in error.what:
            do = "Copy it again, or pass --truncated keep"
        return ShardError(error.what, where=item.image, found=error.found, allowed=error.allowed, do=do)
    except OSError as error:
        return ShardError(f"the file can't be read ({error.strerror or error})", where=item.image)
    return item


def share(count: int, part: float) -> int:
    """How many of a class's samples go to the validation split: the rounded share, one at least, but never all."""
    return min(count - 1, max(1, round(part * count)))


def require_part(name: str, part: float) -> None:
    """Raise ConfigError unless it is a share below 1."""
    if not 0 <= part < 1:
        raise ConfigError("an impossible share", where=name, found=part, allowed="0 to below 1")
