"""What a view costs: decoding, rendering and erasing beside timm's PIL transform, and each operation beside PIL's."""

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP

from benchmarks.data import RECIPE
from benchmarks.measure import interleaved, ratio
from kdpipe.shards import BlockReader, Index
from kdpipe.shards.images import decode
from kdpipe.views import ViewsConfig
from kdpipe.views.block import block_views, decode_sample
from kdpipe.views.ops import RAND_OPS
from kdpipe.views.policy import Interpolation
from kdpipe.views.resize import flip, resize

Work = Callable[[], Any]

VIEWS = ViewsConfig(scale=(0.08, 1.0), interpolation="bicubic", **RECIPE)
PER_DECODE = 10
_BATCH = 64  # the buffer to render into, views
_CALLS = 20  # of an operation each time it is timed
_MAGNITUDE = 9


def views(index: Index, size: int = 224, repeats: int = 5) -> dict[str, Any]:
    """Core-milliseconds a view, one and ten views a decode, and of each operation; one thread throughout.

    The reference is timm's training transform with the same settings, in two forms. One ends in a float tensor,
    normalised and erased; ours is normalised on the device, where the noise it drew is put in place. The other,
    uint8, is normalised on the device too, and its erasing is drawn there.
    """
    reader = BlockReader(index)
    references = {
        "reference": _Reference(reader, size),
        "reference_uint8": _Reference(reader, size, use_prefetcher=True),
    }
    out = np.empty((_BATCH, size, size, 3), np.uint8)
    found: dict[str, Any] = {}
    random.seed(0)  # timm draws from both, and the signs of the operations' arguments from the first
    torch.manual_seed(0)
    with _one_thread():
        for ending, count in (("", 1), ("_ten_views", PER_DECODE)):
            works: dict[str, Work] = {"ours": partial(_ours, reader, out, count)}
            works |= {name: partial(reference, count) for name, reference in references.items()}
            times = interleaved(works, repeats, per=1000 * len(index) * count)
            found[f"speedup{ending}"] = ratio(times["reference"], times["ours"])
            found[f"speedup_uint8{ending}"] = ratio(times["reference_uint8"], times["ours"])
            found[f"images_per_core_second{ending}"] = 1000 / times["ours"]["median"]
            found[f"core_ms_per_view{ending}"] = times["ours"]
            found |= {f"{name}_core_ms_per_view{ending}": times[name] for name in references}
        operations = _operations(reader.image(0), size, repeats)
    return {
        "operations": operations,
        **found,
        "reference": "timm create_transform (PIL), ending in float; ten views: of images decoded once",
        "reference_uint8": "the same, ending in uint8 without erasing, as timm's prefetching loader uses it",
        "reference_crashes": sum(reference.crashes for reference in references.values()),
        "policy": RECIPE,
        "images": len(index),
        "size": size,
        "repeats": repeats,
    }


def _ours(reader: BlockReader, out: np.ndarray, count: int) -> None:
    """Views 0 .. count - 1 of every sample, each image decoded once, into a buffer as large as a batch."""
    index, slot = reader.index, 0
    for block in range(index.blocks):
        drawn = [block_views(index, VIEWS, block, view) for view in range(count)]
        first = index.rows(block).start
        for i, data in enumerate(reader.read(block)):
            image = decode_sample(index, first + i, data, VIEWS)
            for view in drawn:
                view.render(i, image, out[slot])
                view.erase(i, out[slot])
                slot = (slot + 1) % len(out)


class _Reference:
    """timm's training transform; `crashes` counts the views that it could not make."""

    def __init__(self, reader: BlockReader, size: int, **form: Any) -> None:
        self.crashes, self._reader = 0, reader
        form = {"color_jitter": None, "interpolation": "bicubic", **RECIPE, **form}
        self._transform = create_transform(size, is_training=True, **form)

    def __call__(self, count: int) -> None:
        """`count` views of every sample, each image decoded once."""
        for block in range(self._reader.index.blocks):
            for data in self._reader.read(block):
                image = _open(data)
                for _ in range(count):
                    try:
                        self._transform(image)
                    except ValueError:  # Pillow 13 refuses to posterize to 0 bits
                        self.crashes += 1


def _operations(data: memoryview, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """By name: `ms` of ours, `pil_ms` of PIL's own as timm calls it, and the `ratio` of PIL's to ours."""
    image, work = decode(data), np.empty((size, size, 3), np.uint8)
    whole = Image.fromarray(image)
    # Half of the area, about what the policy crops in the mean.
    height, width = (max(1, round(0.7 * n)) for n in image.shape[:2])
    left, top = (whole.width - width) // 2, (whole.height - height) // 2
    crop = image[top : top + height, left : left + width]
    source = np.empty_like(work)
    resize(crop, source, "bicubic")
    picture = Image.fromarray(source)
    kinds: dict[Interpolation, Image.Resampling] = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }

    def fresh() -> np.ndarray:
        np.copyto(work, source)
        return work

    def cut(pil: Image.Resampling) -> Image.Image:
        return whole.crop((left, top, left + width, top + height)).resize((size, size), pil)

    def changing(apply: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return apply(fresh(), *args, "bicubic", VIEWS.fill)

    works: dict[str, tuple[Work, Work]] = {"decode": (lambda: decode(data), lambda: _open(data))}
    for kind, pil in kinds.items():
        works[f"resize {kind}"] = (
            partial(resize, crop, work, kind),
            partial(cut, pil),
        )
    changed: dict[str, tuple[Work, Work]] = {
        "hflip": (lambda: flip(fresh(), 1), lambda: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "vflip": (lambda: flip(fresh(), 0), lambda: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
    }
    for name, apply in RAND_OPS.items():
        level, theirs = cast(Any, LEVEL_TO_ARG[name]), cast(Callable[..., Any], NAME_TO_OP[name])
        args = () if level is None else level(_MAGNITUDE, {})
        changed[name] = (
            partial(changing, apply, args or (None,)),
            partial(theirs, picture, *args, fillcolor=VIEWS.fill, resample=kinds["bicubic"]),
        )
    timed = {"copy": _often(fresh)}
    for name, (ours, reference) in (works | changed).items():
        timed |= {name: _often(ours), f"{name} of PIL": _often(reference)}
    times = {name: timing["median"] for name, timing in interleaved(timed, repeats, per=1000 * _CALLS).items()}
    table = {}
    for name in works | changed:
        # Ours changes its image in place and is given a fresh copy each time, which is not part of it.
        ms = max(1e-4, times[name] - (times["copy"] if name in changed else 0))
        table[name] = {"ms": ms, "pil_ms": times[f"{name} of PIL"], "ratio": times[f"{name} of PIL"] / ms}
    return table


def _often(work: Work) -> Work:
    return lambda: [work() for _ in range(_CALLS)]


def _open(data: memoryview) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
