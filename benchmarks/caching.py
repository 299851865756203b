"""What caching costs beyond the teacher's forward: reading, decoding, rendering, encoding, writing."""

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform

from benchmarks.measure import ratio, rounds, spread
from kdpipe.cache import Store, add_segment, commit_task, create
from kdpipe.cache.layout import Segment
from kdpipe.caching import make_identity
from kdpipe.caching.identity import render_canaries
from kdpipe.caching.task import run_task
from kdpipe.shards import BlockReader, Index
from kdpipe.targets import Encoding, TargetsConfig
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig

PER_IMAGE_VIEWS = 4


def caching(index: Index, folder: Path, size: int = 224, repeats: int = 5) -> dict[str, Any]:
    """Core-milliseconds a view of the whole of `cache-teacher` but for the teacher's forward.

    The teacher is one linear layer on pooled pixels; its forward is measured alone and taken off. The reference is
    timm's training transform on the same images, each decoded again for every view as a trainer does.
    """
    views = ViewsConfig()
    config = TeacherConfig(model="benchmarks.data:cheap_teacher", num_classes=1000, input_size=size, threads=1)
    teacher = Teacher(config)
    encoding = Encoding.of(TargetsConfig(), teacher.num_classes)
    segment = Segment(0, encoding, tuple(range(PER_IMAGE_VIEWS)), teacher.numerics())
    store = Store(folder / "caching.zarr")
    identity = make_identity(index, views, teacher.identity(), size)
    cache = create(store, identity, render_canaries(index, views, [0], size))
    add_segment(cache, segment)

    def ours() -> None:
        for i, shard in enumerate(index.shards):
            fields, quality = run_task(index, views, teacher, segment, shard, size, threads=1)
            before = cache.commits.get((segment.name, shard.name), {"files": {}})
            for name in (segment.commit(shard.name), *before["files"]):
                store.remove(name)
            commit_task(cache, segment, i, fields, quality)

    batch = torch.zeros(config.batch_size, size, size, 3, dtype=torch.uint8).numpy()

    def forward() -> None:
        for block in range(index.blocks):
            for _ in range(PER_IMAGE_VIEWS * -(-len(index.rows(block)) // config.batch_size)):
                teacher(batch)

    plain: dict[str, Any] = {"auto_augment": None, "color_jitter": None, "re_prob": 0}
    transform = create_transform(size, is_training=True, interpolation="bicubic", **plain)
    reader = BlockReader(index)

    def reference() -> None:
        for row in range(len(index)):
            for _ in range(PER_IMAGE_VIEWS):
                transform(Image.open(io.BytesIO(reader.image(row))).convert("RGB"))

    times = rounds(
        {"ours": ours, "forward": forward, "reference": reference}, repeats, per=1000 * len(index) * PER_IMAGE_VIEWS
    )
    added = [whole - alone for whole, alone in zip(times["ours"], times["forward"], strict=True)]
    return {
        "added_core_ms_per_view": spread(added),
        "forward_core_ms_per_view": spread(times["forward"]),
        "reference": "timm create_transform, one decode a view",
        "reference_core_ms_per_view": spread(times["reference"]),
        "ratio": ratio(spread(added), spread(times["reference"])),
        "views_per_decode": PER_IMAGE_VIEWS,
        "images": len(index),
        "size": size,
        "repeats": repeats,
    }
