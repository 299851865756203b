"""Size of cached targets, and what reading them in epoch order costs, beside two references' formats."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import made_up_logits
from benchmarks.measure import interleaved, ratio
from kdpipe.cache import Cache, Store, add_segment, commit_task, create
from kdpipe.cache.layout import Segment
from kdpipe.cache.read import ArrayReader
from kdpipe.caching.identity import scratch_identity
from kdpipe.loader.order import Order, epoch_order
from kdpipe.loader.worker import TargetRows
from kdpipe.targets import Encoding, TargetsConfig
from kdpipe.targets.quality import quality
from kdpipe.teacher import TeacherOutput
from kdpipe.views.canaries import Canary

CLASSES, BLOCK, BATCH = 1000, 256, 256


def targets(folder: Path, rows: int = 40 * BLOCK, k: int = 16, repeats: int = 7) -> dict[str, Any]:
    """Bytes a view and core-microseconds a row of top-k targets of an imaginary 1000-class teacher.

    Rows are read in the order of an epoch (streams, windows), batch by batch, as the loader reads them. The reference
    for reading and size is TinyViT's format: a file of fixed records (int32 seed, k int16 indices, k fp16
    probabilities), read with seek and read by sample.
    """
    encoding = Encoding.of(TargetsConfig(k=k), CLASSES)
    cache, fields = _cache(folder, encoding, rows)
    blocks = [np.arange(start, start + BLOCK) for start in range(0, rows, BLOCK)]
    order = epoch_order(blocks, seed=0, epoch=0, batch_size=BATCH, streams=64, window=8)
    records = _tinyvit(folder / "records.bin", fields)
    times = interleaved(
        {
            "ours": lambda: _read(cache, order),
            "reference": lambda: _read_records(folder / "records.bin", records, order),
        },
        repeats,
        per=rows,
    )
    stored = cache.bytes(cache.segments[0])
    means = cache.quality(cache.segments[0]).means()
    return {
        "core_us_per_row": times["ours"],
        "reference": "TinyViT's fixed records, seek and read by sample",
        "reference_core_us_per_row": times["reference"],
        "ratio": ratio(times["ours"], times["reference"]),
        "bytes_per_view": stored / rows,
        "reference_bytes_per_view": float(records),
        "size_ratio": stored / rows / records,
        "encoding_loss_nats": means["encoding_loss"],
        "retained_mass": means["retained_mass"],
        "teacher_top1": means["teacher_top1"],
        "k": k,
        "classes": CLASSES,
        "rows": rows,
        "repeats": repeats,
    }


def _cache(folder: Path, encoding: Encoding, rows: int) -> tuple[Cache, dict[str, np.ndarray]]:
    logits, labels = made_up_logits(rows, CLASSES)
    output = TeacherOutput(logits)
    fields = encoding.encode(output, labels)
    canary = Canary("0", "0", 0, np.zeros((1, 1, 3), np.uint8))
    cache = create(Store(folder / "targets.zarr"), scratch_identity([rows], BLOCK, CLASSES), [canary])
    add_segment(cache, Segment(0, encoding, (0,), {}))
    whole = {name: array[None] for name, array in fields.items()}
    commit_task(cache, cache.segments[0], 0, whole, quality(output, labels, encoding, fields))
    return cache, fields


def _read(cache: Cache, order: Order) -> None:
    """One epoch of targets, block by block and batch by batch, by the loader's own code."""
    arrays = ArrayReader(cache)
    segment = cache.segments[0]
    rows = TargetRows(segment.encoding.fields())
    left = np.bincount(order.rows // BLOCK)
    for step in range(order.steps):
        batch = order.rows[order.bounds[step] : order.bounds[step + 1]]
        for row in batch.tolist():
            number, at = divmod(row, BLOCK)
            block = number, 0
            if block not in rows:
                rows.open(block, arrays.read(segment, "0", 0, number * BLOCK, (number + 1) * BLOCK))
            rows.take(block, at)
            left[number] -= 1
            if not left[number]:
                rows.drop(block)
        rows.batch()


def _tinyvit(path: Path, fields: dict[str, np.ndarray]) -> int:
    k = fields["index"].shape[1]
    dtype = np.dtype([("seed", "<i4"), ("index", "<i2", k), ("probability", "<f2", k)])
    table = np.zeros(len(fields["index"]), dtype)
    table["index"], table["probability"] = fields["index"], np.exp(fields["log_prob"].astype(np.float32))
    path.write_bytes(table.tobytes())
    return dtype.itemsize


def _read_records(path: Path, size: int, order: Order) -> None:
    k = (size - 4) // 4
    with path.open("rb", buffering=0) as file:
        for step in range(order.steps):
            index, probability = [], []
            for row in order.rows[order.bounds[step] : order.bounds[step + 1]].tolist():
                file.seek(row * size)
                record = file.read(size)
                index.append(np.frombuffer(record, "<i2", k, 4))
                probability.append(np.frombuffer(record, "<f2", k, 4 + 2 * k))
            torch.from_numpy(np.stack(index)), torch.from_numpy(np.stack(probability))
