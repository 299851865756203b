"""The bytes of a cache's Zarr files, laid out in memory by zarr; `commit` stores them.

A module of its own, imported when a cache is written: zarr takes a quarter of a second to import.
"""

from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from kdpipe.cache.cache import Cache
from kdpipe.cache.layout import CANARY_PIXELS, FORMAT, ROOT, Segment, fill_value, padded_rows

# Of zstd. Features are large and nearly noise: more than the least effort takes them several times as long for 3 %.
_LEVEL, _FAST = 5, 1


def root_files(identity: dict[str, Any], pixels: np.ndarray) -> dict[str, bytes]:
    """Files of a cache without segments, by path: the identity, and the canaries' pixels, uint8 (n, S, S, 3)."""
    memory: dict[str, Any] = {}
    group = zarr.create_group(
        MemoryStore(memory),
        zarr_format=3,
        attributes={"kdpipe": {"format": FORMAT, "identity": identity}},
    )
    array = group.create_array(
        CANARY_PIXELS,
        shape=pixels.shape,
        chunks=pixels.shape,
        dtype="uint8",
        compressors=_codecs("noshuffle"),
        dimension_names=("canary", "y", "x", "channel"),
        config={"write_empty_chunks": True},  # black ones too
    )
    array[:] = pixels
    return _files(memory)


def segment_files(cache: Cache, segment: Segment) -> dict[str, bytes]:
    """The metadata of a segment's empty arrays by path, and of the groups above them but for the root."""
    shards, block = cache.shards, int(cache.identity["block_size"])
    rows = padded_rows(shards, block)
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3)
    features = segment.encoding.fields(("pooled", "map"))
    for field in segment.encoding.fields():
        group.create_array(
            segment.array(field.name),
            shape=(len(segment.views), len(shards), rows, *field.shape),
            chunks=(1, 1, segment.rows_a_chunk(field.name, block), *field.shape),
            shards=(len(segment.views), 1, rows, *field.shape),
            dtype=field.dtype,
            compressors=_codecs("bitshuffle", _FAST if field in features else _LEVEL),
            fill_value=fill_value(field.dtype),
            dimension_names=("view", "shard", "row", *segment.encoding.dimensions(field.name)),
        )
    files = _files(memory)
    del files[ROOT]
    return files


def task_files(cache: Cache, segment: Segment, shard: int, fields: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The one file of each field of a task, by path; `fields` as in `commit_task`."""
    samples, files = cache.shards[shard]["samples"], {}
    for field in segment.encoding.fields():
        data = fields[field.name]
        expected = (len(segment.views), samples, *field.shape)
        assert data.shape == expected, f"{field.name}: {data.shape} is not {expected}"
        path, name = segment.array(field.name), segment.chunk(field.name, shard)
        metadata = f"{path}/{ROOT}"
        memory: dict[str, Any] = {metadata: Buffer.from_bytes(cache.store.read(metadata))}
        # By its own path: the group's metadata name every shard, which is long to read for each task.
        array = zarr.open_array(MemoryStore(memory), path=path, mode="r+")
        padded = np.full((len(segment.views), *array.shape[2:]), fill_value(field.dtype), field.dtype)
        padded[:, :samples] = data
        array[:, shard] = padded
        files[name] = memory[name].to_bytes()
    return files


def _files(memory: dict[str, Any]) -> dict[str, bytes]:
    """Files by path, those above before those below: a root that is there makes the rest known as a cache."""
    return {name: memory[name].to_bytes() for name in sorted(memory, key=lambda name: (name.count("/"), name))}


def _codecs(shuffle: str, level: int = _LEVEL) -> tuple[Any, ...]:
    return (BloscCodec(cname="zstd", clevel=level, shuffle=shuffle), Crc32cCodec())  # type: ignore[arg-type]
