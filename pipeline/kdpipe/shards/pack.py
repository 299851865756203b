"""Writing tars of samples, deterministic in every byte, and the folder they are in, whole or not at all."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dask.base import compute
from dask.delayed import delayed
from PIL import Image

from kdpipe._util.files import fsync
from kdpipe.errors import ImageError, ShardError
from kdpipe.shards import images
from kdpipe.shards.convert import Lossless, reencoded


@dataclass(frozen=True)
class Item:
    """A sample to write: its image as a file or as encoded bytes, its label or None.

    `convert` is the format to encode the image again in, and `was` what it is before.
    """

    key: str
    image: Path | bytes
    label: int | None
    convert: Lossless | None = None
    was: str = ""


def write_shards(
    folder: Path,
    name: str,
    items: list[Item],
    samples_per_shard: int,
    *,
    resize: int | None = None,
    workers: int | None = None,
) -> list[Path]:
    """Write items in their order, so many a shard, into an existing folder; the shards' paths.

    Raises:
        ShardError: an image is none or, when it is to be resized, corrupt.
        OSError: as raised by the file system.
    """
    parts = [items[at : at + samples_per_shard] for at in range(0, len(items), samples_per_shard)]
    digits = max(4, len(str(len(parts) - 1)))
    paths = [folder / f"{name}-{number:0{digits}d}.tar" for number in range(len(parts))]
    tasks = [delayed(_attempt, pure=False)(path, part, resize) for path, part in zip(paths, parts, strict=True)]
    for error in compute(*tasks, scheduler="threads", num_workers=workers or os.cpu_count() or 1):
        if error is not None:
            raise error  # the first in shard order, whichever thread was quickest
    return paths


def _attempt(path: Path, items: list[Item], resize: int | None) -> ShardError | OSError | None:
    try:
        _write_shard(path, items, resize)
    except (ShardError, OSError) as error:
        return error
    return None


def _write_shard(path: Path, items: list[Item], resize: int | None) -> None:
    from webdataset.writer import TarWriter  # imports torch

    with path.open("wb") as file:
        # GNU's format takes names of any length; the fixed user and time make equal content equal bytes.
        with TarWriter(file, user="", group="", mtime=0, encoder=False, format="GNU_FORMAT") as tar:
            for item in items:
                kind, data = _encoded(item, resize)
                sample: dict[str, str | bytes] = {"__key__": item.key, kind: data}
                if item.label is not None:
                    sample["cls"] = str(item.label).encode()
                tar.write(sample)
        file.flush()
        os.fsync(file.fileno())


def _encoded(item: Item, resize: int | None) -> tuple[str, bytes]:
    image = item.image
    data = image if isinstance(image, bytes) else image.read_bytes()
    try:
        if item.convert is not None:
            data = reencoded(data, item.convert)
        kind = images.identify(data)
        if kind is None or resize is None:
            images.check(data)
        elif (smaller := _shrunk(images.decode(data), resize)) is not None:
            buffer = io.BytesIO()
            kind = "png" if kind == "png" else "jpeg"
            smaller.save(buffer, kind.upper(), **({} if kind == "png" else {"quality": 95}))
            data = buffer.getvalue()
    except ImageError as error:
        raise ShardError(error.what, where=image, found=error.found, allowed=error.allowed, do=error.do) from error
    return {"jpeg": "jpg", None: ""}.get(kind, str(kind)), data


def _shrunk(pixels: np.ndarray, shorter: int) -> Image.Image | None:
    height, width = pixels.shape[:2]
    if min(height, width) <= shorter:
        return None
    # As torchvision's Resize: the longer side is rounded down.
    longer = int(shorter * max(height, width) / min(height, width))
    size = (shorter, longer) if width <= height else (longer, shorter)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def refuse_used(out: Path) -> None:
    """Raise ShardError if something is there that isn't an empty folder."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ShardError("something is there already", where=out, do="Choose another --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all went well and otherwise vanishes.

    Raises:
        ShardError: `out` is there and not empty, or the disk won't.
    """
    do = "Choose another --out"
    refuse_used(out)
    partial = out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            fsync(partial)
            partial.rename(out)
            fsync(out.absolute().parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        where = error.filename if error.filename and str(partial) not in str(error.filename) else out
        raise ShardError(f"the shards can't be written ({error.strerror or error})", where=where, do=do) from error
