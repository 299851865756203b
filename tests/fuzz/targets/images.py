"""Encoded images: header check, decoder and the stricter check."""

from pathlib import Path

import numpy as np
from PIL import Image

from kdpipe.shards import images
from tests.fuzz.target import Changed, Target
from tests.shards.making import encode, photo


def make(folder: Path) -> Target:
    return Target(run, seeds(), 60_000)


def seeds() -> list[bytes]:
    pixels = photo(np.random.default_rng(0), 12, 17)
    grey = Image.fromarray(pixels).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    made = [encode(pixels, kind) for kind in ("jpg", "png", "webp")]
    made += [encode(grey, kind) for kind in ("jpg", "png")]
    made += [encode(pixels, "jpg", exif=exif), encode(pixels, "jpg", progressive=True)]
    made += [encode(Image.fromarray(pixels).convert("CMYK"), "jpg"), encode(pixels, "webp", lossless=False)]
    return [*made, encode(Image.fromarray(pixels).convert("P"), "png"), encode(grey.convert("LA"), "png")]


def run(data: bytes) -> None:
    images.check(data)
    for exif in ("ignore", "apply"):
        pixels = images.decode(data, exif)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise Changed(f"pixels of {pixels.dtype} {pixels.shape}")
    images.verify(data)
