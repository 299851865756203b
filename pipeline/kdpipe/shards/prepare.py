"""Making shards: an ImageFolder tree, or scikit-learn's digits, into shuffled WebDataset tars.

The same source and seed give the same bytes. A folder of shards appears whole or not at all.
"""

import io
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdpipe.errors import ConfigError, ShardError
from kdpipe.shards import images
from kdpipe.shards.pack import Item, new_folder, write_shards

_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
CLASSES = "classes.json"


def prepare_folder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str = "train",
    samples_per_shard: int = 1000,
    resize: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> list[Path]:
    """Write `out`/`name`-0000.tar ... and classes.json from a folder with one folder of images a class.

    Class folders, sorted by name, are labelled 0, 1, ... A sample's key is its path in `source` without the
    extension, dots replaced by underscores. Images' bytes are copied untouched unless `resize` is given.

    Args:
        source: the tree; files that are hidden or have no image's extension are passed over.
        out: a new or an empty folder.
        name: of the shards, before their number.
        samples_per_shard: at least 1; the last shard may have fewer.
        resize: shrink the shorter side to so many pixels (Pillow's bicubic), encoded again as PNG where it
            was PNG and as JPEG of quality 95 otherwise. Smaller images stay as they are.
        seed: of the order.
        workers: threads; the result doesn't depend on them.

    Raises:
        ShardError: no such tree, a class without images, a file that is no image, or `out` in use or
            not writable.
        ConfigError: a number is impossible.
    """
    _positive(samples_per_shard=samples_per_shard, resize=resize, workers=workers)
    root = Path(source)
    classes, items = _tree(root)
    random.Random(seed).shuffle(items)
    with new_folder(Path(out)) as folder:
        paths = write_shards(folder, name, items, samples_per_shard, resize=resize, workers=workers)
        (folder / CLASSES).write_text(json.dumps(classes, ensure_ascii=False) + "\n", encoding="utf-8")
    return [Path(out) / path.name for path in paths]


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


def _tree(root: Path) -> tuple[list[str], list[Item]]:
    if not root.is_dir():
        raise ShardError("no such folder", where=root, allowed="a folder with one folder of images a class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = [path.name for path in folders]
    if not folders:
        raise ShardError("no class folders", where=root, allowed="a folder with one folder of images a class")
    if len(_SPLITS & {name.lower() for name in classes}) == len(classes):
        raise ShardError("these are splits, not classes", where=root, found=", ".join(classes), do="Prepare each")
    items: list[Item] = []
    taken: dict[str, int] = {}
    for label, folder in enumerate(folders):
        before = len(items)
        for path in sorted(folder.rglob("*")):
            if path.name.startswith(".") or path.suffix[1:].lower() not in images.EXTENSIONS or not path.is_file():
                continue
            items.append(Item(_key(path.relative_to(root), taken), path, label))
        if len(items) == before:
            raise ShardError("no images in a class folder", where=folder)
    return classes, items


def _key(path: Path, taken: dict[str, int]) -> str:
    """A key that webdataset reads back as it is: without dots, unlike its own `__metadata__`, and unique."""
    key = re.sub(r"^_+", "", path.with_suffix("").as_posix().replace(".", "_"))
    try:
        key.encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise ShardError("a file name is not UTF-8", where=shown, do="Rename it") from error
    while key in taken:  # a.jpg beside a.png
        taken[key] += 1
        key = f"{key}-{taken[key]}"
    taken[key] = 1
    return key


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
