"""A large index without its shards: an index is arrays and a document, and opening it looks at nothing else."""

from pathlib import Path

import numpy as np

from kdpipe.shards import Index, layout

# ImageNet-21k: classes, samples of a shard, bytes of a photograph, samples of a block.
CLASSES, _SHARD, _IMAGE, _BLOCK = 21_841, 10_000, 110_000, 256


def made_up_index(path: Path, samples: int) -> Index:
    """An index of shards that don't exist, with places, keys and labels like ImageNet-21k's, by the real writer."""
    rng = np.random.default_rng(0)
    order = rng.permutation(samples)
    labels, number = order % CLASSES, order // CLASSES
    size = rng.integers(_IMAGE // 2, 3 * _IMAGE // 2, samples)
    taken = 1024 + -(-size // 512) * 512 + 512  # a header and a record of the image, and of its label
    row = np.arange(samples)
    stop = np.cumsum(taken)
    stop -= np.repeat(np.r_[0, stop[_SHARD - 1 :: _SHARD]], _SHARD)[:samples]
    firsts = np.flatnonzero(row % _SHARD % _BLOCK == 0)
    lasts = np.r_[firsts[1:], samples] - 1
    digests = rng.integers(0, 256, (2, len(firsts), 32), np.uint8)
    keys = _keys(labels, number)
    arrays = {
        "labels": labels,
        "image_start": stop - taken + 512,
        "image_size": size,
        "keys": keys.reshape(-1),
        "key_stop": (row + 1) * keys.shape[1],
        "block_first": np.r_[firsts, samples],
        "block_shard": firsts // _SHARD,
        "block_start": (stop - taken)[firsts],
        "block_stop": stop[lasts],
        "block_digest": digests[0],
        "block_content": digests[1],
    }
    table = []
    for at, first in enumerate(range(0, samples, _SHARD)):
        last = min(first + _SHARD, samples)
        begin, end = np.searchsorted(firsts, [first, last]).tolist()
        name, size_of = f"imagenet21k-{at:04d}.tar", int(stop[last - 1]) + 1024
        place = {"first": first, "samples": last - first, "first_block": begin, "blocks": end - begin}
        table.append({"name": name, "url": f"/nowhere/{name}", "size": size_of, "sha256": f"{at:064x}", **place})
    document = {"block_size": _BLOCK, "num_classes": CLASSES, "shards": table, "skipped": []}
    layout.save(path, document, arrays)
    return Index.open(path)


def _keys(labels: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Keys like n01440764_10026, as ASCII: uint8 (N, 15)."""
    out = np.empty((len(labels), 15), np.uint8)
    out[:, 0], out[:, 9] = ord("n"), ord("_")
    for values, columns in ((1_440_764 + labels, range(8, 0, -1)), (number, range(14, 9, -1))):
        left = values
        for column in columns:
            left, out[:, column] = left // 10, left % 10 + ord("0")
    return out
