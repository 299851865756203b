"""Shards of a thousand classes made of scikit-learn's digits: three side by side, the numbers 000 to 999.

Real handwriting, and confusions as real classifiers have them: 318 with 319 and 378, not with all alike.
"""

import io
import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdpipe.shards import BlockReader, build_index
from kdpipe.shards.images import decode
from kdpipe.shards.pack import Item, new_folder, write_shards
from kdpipe.shards.prepare import CLASSES as CLASSES_FILE
from kdpipe.shards.prepare import prepare_digits

CLASSES = 1000
SIZE = 32
# Pixels, of SIZE: how large a digit is written, how far its neighbours are, how far each strays from its place.
_WIDE, _HIGH, _PITCH, _STRAY = 12, 16, 9, 2

# By digit, its images: uint8 (8, 8) each.
Digits = Sequence[Sequence[np.ndarray]]


def prepare_synthetic(
    out: str | os.PathLike[str],
    *,
    train: int = 20_000,
    val: int = 2_000,
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> dict[str, list[Path]]:
    """Write images of the numbers 000 to 999 as grey PNGs of SIZE pixels: `out`/train/, `out`/val/, classes.json.

    A number is three handwritten digits, written close together and never quite in line. The validation images
    are made of digits that no training image has: the split is that of `prepare_digits`. Every
    thousand images have each number once.

    Args:
        out: a new or an empty folder.
        train: images in `train`.
        val: images in `val`.
        samples_per_shard: at least 1; the last shard may have fewer.
        seed: of the split, of what is drawn, and of the order.

    Returns:
        The shards of each folder, by the folder's name.

    Raises:
        ShardError: `out` is in use or not writable, or scikit-learn isn't installed.
    """
    written = {}
    with new_folder(Path(out)) as folder:
        digits = _digits_of(seed)
        for name, count in {"train": train, "val": val}.items():
            (folder / name).mkdir()
            items = _numbers(digits[name], name, count, random.Random(f"{name} {seed}"))
            paths = write_shards(folder / name, name, items, samples_per_shard)
            written[name] = [Path(out) / name / path.name for path in paths]
        (folder / CLASSES_FILE).write_text(json.dumps([f"{number:03d}" for number in range(CLASSES)]) + "\n")
    return written


def _digits_of(seed: int) -> dict[str, Digits]:
    """The digits of `prepare_digits` in their original 8 x 8 pixels, by split."""
    digits: dict[str, Digits] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare_digits(folder / "digits", size=8, seed=seed)
        for name in ("train", "val"):
            index = build_index(str(folder / "digits" / name), folder / f"{name}.index")
            reader = BlockReader(index)
            images: list[list[np.ndarray]] = [[] for _ in range(10)]
            for row, label in enumerate(index.labels.tolist()):
                images[label].append(decode(reader.image(row))[..., 0])
            reader.close()
            digits[name] = images
    return digits


def _numbers(digits: Digits, name: str, count: int, draw: random.Random) -> list[Item]:
    rounds = -(-count // CLASSES)
    labels = [label for _ in range(rounds) for label in draw.sample(range(CLASSES), CLASSES)][:count]
    return [Item(f"{name}-{i:05d}", _written(digits, label, draw), label) for i, label in enumerate(labels)]


def _written(digits: Digits, number: int, draw: random.Random) -> bytes:
    """One image of a number, encoded; where digits touch, the lighter pixel is seen."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    for place, digit in enumerate(f"{number:03d}"):
        image = draw.choice(digits[int(digit)])
        ink = np.asarray(Image.fromarray(image).resize((_WIDE, _HIGH), Image.Resampling.BICUBIC))
        x = SIZE // 2 + (place - 1) * _PITCH - _WIDE // 2 + draw.randint(-1, 1)
        y = (SIZE - _HIGH) // 2 + draw.randint(-_STRAY, _STRAY)
        spot = canvas[y : y + _HIGH, x : x + _WIDE]
        np.maximum(spot, ink, out=spot)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, "PNG")
    return buffer.getvalue()
