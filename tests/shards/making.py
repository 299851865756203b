"""Small shards for tests: photo-like images with a learnable class, seeded, the same bytes every time."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def photo(rng: np.random.Generator, height: int, width: int, label: int = 0, classes: int = 10) -> np.ndarray:
    """uint8 (height, width, 3): smooth waves whose direction and hue tell the label, and some noise."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    angle = np.pi * label / classes
    wave = np.sin(2 * np.pi * (3 * (x * np.cos(angle) + y * np.sin(angle)) + rng.random()))
    hue = np.cos(2 * np.pi * (label / classes + np.arange(3) / 3))
    image = 128 + 50 * wave[..., None] + 35 * hue + rng.normal(0, 12, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "jpg", **options: object) -> bytes:
    """The bytes of an image file; `kind` is jpg, png or webp."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    defaults = {"jpg": {"quality": 90}, "png": {}, "webp": {"lossless": True}}[kind]
    picture.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[kind], **(defaults | options))
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of exactly these members in this order, with nothing in it that depends on when or where."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard_members(
    samples: int,
    *,
    size: int | tuple[int, int] = 32,
    classes: int = 10,
    seed: int | Sequence[int] = 0,
    unlabelled: float = 0.0,
    kind: str = "jpg",
    first: int = 0,
) -> list[tuple[str, bytes]]:
    """(name, data) of each member of one shard; the last `unlabelled` share of samples has no `.cls`."""
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    labels = rng.integers(0, classes, samples)
    kept = round(samples * (1 - unlabelled))
    members = []
    for i, label in enumerate(labels.tolist()):
        key = f"s{first + i:06d}"
        members.append((f"{key}.{kind}", encode(photo(rng, height, width, label, classes), kind)))
        if i < kept:
            members.append((f"{key}.cls", str(label).encode()))
    return members


def write_shards(
    folder: str | Path,
    n_shards: int = 2,
    samples: int | Sequence[int] = 20,
    *,
    size: int | tuple[int, int] = 32,
    classes: int = 10,
    seed: int = 0,
    unlabelled: float = 0.0,
    kind: str = "jpg",
    name: str = "shard",
) -> list[Path]:
    """Write `folder`/`name`-0000.tar ... and return their paths.

    Args:
        folder: made if it isn't there.
        n_shards: how many.
        samples: of each shard: one number for all or one for each.
        size: pixels of a side, or (height, width).
        classes: labels are drawn uniformly from 0..classes-1, and show in the images.
        seed: of everything.
        unlabelled: the share of each shard's samples (its last ones) without a label.
        kind: jpg, png or webp.
        name: the shards' name before the number.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counts = [samples] * n_shards if isinstance(samples, int) else list(samples)
    assert len(counts) == n_shards, "one count for each shard"
    paths, first = [], 0
    for number, count in enumerate(counts):
        members = shard_members(
            count,
            size=size,
            classes=classes,
            seed=[seed, number],
            unlabelled=unlabelled,
            kind=kind,
            first=first,
        )
        paths.append(write_tar(folder / f"{name}-{number:04d}.tar", members))
        first += count
    return paths
