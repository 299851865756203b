"""Making shards: an ImageFolder tree, or scikit-learn's digits, into shuffled WebDataset tars.

The same source and seed give the same bytes. A folder of shards appears whole or not at all.
"""

import io
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdpipe.errors import ConfigError, ShardError
from kdpipe.shards.classes import CLASSES, ClassMap
from kdpipe.shards.convert import Lossless
from kdpipe.shards.folder import ClassOrder, Found, decode_all, look_through, require_part, share
from kdpipe.shards.pack import Item, new_folder, refuse_used, write_shards
from kdpipe.shards.problems import raise_all

REPORT = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        shards: by split, in order.
        classes: their names; a class's number is its place.
        counts: samples of each class, by split.
        skipped: file or folder, reason.
        ignored: files and folders that no sample can be, counted by their kind.
        converted: what was encoded again: file, key, from, to.
        remarks: what somebody should know, a line each.
    """

    shards: dict[str, list[Path]]
    classes: list[str]
    counts: dict[str, list[int]]
    skipped: list[dict[str, str]]
    ignored: dict[str, int]
    converted: list[dict[str, str]]
    remarks: list[str]


def prepare_folder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str = "train",
    samples_per_shard: int = 1000,
    resize: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    classes: ClassMap | None = None,
    class_order: ClassOrder = "plain",
    val_split: float = 0.0,
    convert: Lossless | None = None,
    keep_truncated: bool = False,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Write `out`/`name`-0000.tar ... and classes.json from a folder with one folder of images a class.

    A sample's key is its path in `source` without the extension, dots replaced by underscores. Every image is decoded;
    its bytes are copied untouched unless it has to be encoded again. `out`/prepared.json lists what was done.

    Args:
        source: the tree; files that are hidden or have no image's extension are passed over.
        out: a new or an empty folder.
        name: of the shards, before their number.
        samples_per_shard: at least 1; the last shard may have fewer.
        resize: shrink the shorter side to so many pixels (Pillow's bicubic), encoded again as PNG where it
            was PNG and as JPEG of quality 95 otherwise. Smaller images stay as they are.
        seed: of the order, and of the split.
        workers: threads; the result doesn't depend on them.
        classes: the class list; by default the folders' names.
        class_order: of the folders where there is no list: torchvision's, "plain", or timm's, "natural".
        val_split: share of each class that goes to `out`/val, and the rest to `out`/train; 0 for none.
        convert: encode GIF, BMP, TIFF, AVIF and JPEG XL again, without loss.
        keep_truncated: encode truncated JPEGs again, grey where data are missing.
        skip_bad: leave out what is bad; otherwise `Problems` lists up to 20.
        progress: called with (images looked at, images in all).

    Raises:
        ShardError: no such tree, something in it is bad, or `out` is in use or not writable.
        ConfigError: a number is impossible.
    """
    _positive(samples_per_shard=samples_per_shard, resize=resize, workers=workers)
    require_part("val_split", val_split)
    if classes is not None and classes.names is None:
        raise ShardError("a class list has every number from 0 on", where="classes", do="Add the missing classes")
    root, threads = Path(source), workers or os.cpu_count() or 1
    refuse_used(Path(out))
    found = look_through(root, classes, class_order)
    decode_all(
        found,
        root=root,
        convert=convert,
        keep_truncated=keep_truncated,
        skip_bad=skip_bad,
        workers=threads,
        progress=progress,
    )
    if not skip_bad:
        raise_all([error for _, error in found.problems])
    if not found.items:
        do = f"All {len(found.problems)} were left out, the first because: {found.problems[0][1]}"
        raise ShardError("no sound image in the folder", where=root, do=do)
    sets = _split(found, name, val_split, random.Random(seed))
    empty = [c for i, c in enumerate(found.classes) if not any(item.label == i for item in found.items)]
    if empty:
        more = ", ..." if len(empty) > 5 else ""
        found.remarks.append(f"{len(empty)} of the classes have no image: {', '.join(empty[:5])}{more}")
    folders = {split: Path(out) / split if val_split else Path(out) for split in sets}
    made = Prepared(
        {},
        found.classes,
        {split: _counts(items, len(found.classes)) for split, items in sets.items()},
        [{"file": what, "reason": str(ShardError(error.what, found=error.found))} for what, error in found.problems],
        dict(sorted(found.ignored.items())),
        found.converted,
        found.remarks,
    )
    with new_folder(Path(out)) as folder:
        for split, items in sets.items():
            inside = folder / split if val_split else folder
            inside.mkdir(exist_ok=True)
            paths = write_shards(inside, split, items, samples_per_shard, resize=resize, workers=workers)
            made.shards[split] = [folders[split] / path.name for path in paths]
        (folder / CLASSES).write_text(json.dumps(found.classes, ensure_ascii=False) + "\n", encoding="utf-8")
        shards = {split: [path.name for path in paths] for split, paths in made.shards.items()}
        report = json.dumps(vars(made) | {"shards": shards}, ensure_ascii=False, indent=1)
        (folder / REPORT).write_text(report + "\n", encoding="utf-8")
    return made


def _split(found: Found, name: str, part: float, order: random.Random) -> dict[str, list[Item]]:
    if not part:
        order.shuffle(found.items)
        return {name: found.items}
    by_class: dict[int | None, list[Item]] = {}
    for item in found.items:
        by_class.setdefault(item.label, []).append(item)
    chosen: set[str] = set()
    for label in sorted(by_class, key=str):
        own = by_class[label]
        chosen.update(item.key for item in order.sample(own, share(len(own), part)))
    single = sum(len(own) == 1 for own in by_class.values())
    if single:
        found.remarks.append(f"{single} classes of one image are in train alone")
    sets = {
        "train": [item for item in found.items if item.key not in chosen],
        "val": [item for item in found.items if item.key in chosen],
    }
    for items in sets.values():
        order.shuffle(items)
    return {split: items for split, items in sets.items() if items}


def _counts(items: list[Item], classes: int) -> list[int]:
    counts = [0] * classes
    for item in items:
        counts[item.label or 0] += 1
    return counts


def prepare_digits(
    out: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    labelled: float = 1.0,
    full: bool = False,
    samples_per_shard: int = 256,
    size: int = 32,
    seed: int = 0,
) -> dict[str, list[Path]]:
    """Write scikit-learn's 1,797 handwritten digits as grey PNGs: `out`/train/, `out`/val/, classes.json.

    Args:
        out: a new or an empty folder.
        val_fraction: the share of each class that goes to `val`.
        labelled: the share of each class's training samples that keep their label (at least one does).
        full: write `out`/train-full too: the images, keys and shard names of `train`, with every label.
        samples_per_shard: at least 1; the last shard may have fewer.
        size: pixels of a side; the 8 x 8 originals are enlarged by Pillow's bicubic.
        seed: of the split, of the choice of labelled samples, and of the order.

    Returns:
        The shards of each folder, by the folder's name.

    Raises:
        ShardError: `out` is in use or not writable, or scikit-learn isn't installed.
        ConfigError: a number is impossible.
    """
    _positive(samples_per_shard=samples_per_shard, size=size)
    if not 0 < val_fraction < 1:
        raise ConfigError("an impossible share", where="val_fraction", found=val_fraction, allowed="between 0 and 1")
    if not 0 < labelled <= 1:
        raise ConfigError("an impossible share", where="labelled", found=labelled, allowed="above 0, up to 1")
    digits, labels = _load_digits(size)
    order = random.Random(seed)
    val = _share_of_each_class(range(len(labels)), labels, val_fraction, order)
    train = [i for i in range(len(labels)) if i not in val]
    kept = _share_of_each_class(train, labels, labelled, order)
    order.shuffle(train)

    def item(i: int, known: bool) -> Item:
        return Item(f"digit-{i:04d}", digits[i], labels[i] if known else None)

    sets = {"train": [item(i, i in kept) for i in train], "val": [item(i, True) for i in sorted(val)]}
    order.shuffle(sets["val"])
    if full:
        sets["train-full"] = [item(i, True) for i in train]
    written = {}
    with new_folder(Path(out)) as folder:
        for name, items in sets.items():
            (folder / name).mkdir()
            paths = write_shards(folder / name, name.removesuffix("-full"), items, samples_per_shard)
            written[name] = [Path(out) / name / path.name for path in paths]
        (folder / CLASSES).write_text(json.dumps([str(c) for c in range(10)]) + "\n")
    return written


def _load_digits(size: int) -> tuple[list[bytes], list[int]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ShardError("the digits need scikit-learn", do="Install kdpipe[demo]") from error
    data = load_digits()
    encoded = []
    for image in data.images:  # 8 x 8, 0.0 to 16.0
        grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
        buffer = io.BytesIO()
        grey.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded, [int(label) for label in data.target]


def _share_of_each_class(rows: Sequence[int], labels: Sequence[int], share: float, order: random.Random) -> set[int]:
    by_class: dict[int, list[int]] = {}
    for row in rows:
        by_class.setdefault(labels[row], []).append(row)
    chosen: set[int] = set()
    for label in sorted(by_class):
        chosen.update(order.sample(by_class[label], max(1, round(share * len(by_class[label])))))
    return chosen


def _positive(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError("an impossible number", where=name, found=value, allowed="1 or more")
