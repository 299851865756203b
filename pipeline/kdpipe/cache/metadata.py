"""What zarr.json files must hold: no more than a segment, the canaries and the identity imply.

Zarr makes codecs by their names and takes sizes as they come, so metadata are compared before it reads any.
"""

from typing import Any

import numpy as np

from kdpipe._util.fingerprint import canonical_json, differences
from kdpipe._util.untrusted import load_json
from kdpipe.cache.layout import Segment, fill_value
from kdpipe.cache.schema import wrong
from kdpipe.cache.sealed import JSON_BYTES
from kdpipe.targets import ArrayField

# Of blosc's buffers.
MOST_BYTES = 2**31 - 2**10
_LEVELS = range(10)
_INDEX: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def load_document(data: bytes, where: object) -> dict[str, Any]:
    """A zarr.json file.

    Raises:
        CorruptionError: it isn't JSON, or no object.
    """
    try:
        if len(data) > JSON_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {JSON_BYTES} are read")
        found = load_json(data)
    except ValueError as e:
        raise wrong(where, "", " ".join(str(e).split())[:120]) from None
    if not isinstance(found, dict):
        raise wrong(where, "", "not an object")
    return found


def check_group(document: dict[str, Any], where: object) -> None:
    """Require the metadata of a group without attributes; raises CorruptionError."""
    _require(document, where, {"attributes": {}, "zarr_format": 3, "node_type": "group"})


def check_array(
    data: bytes, where: object, segment: Segment, field: ArrayField, shards: int, rows: int, block: int
) -> None:
    """Require the metadata of a segment's array: `rows` padded ones, of `shards` shards; raises CorruptionError."""
    inner, views = segment.rows_a_chunk(field.name, block), len(segment.views)
    if inner * field.nbytes > MOST_BYTES:
        raise wrong(where, "codecs", f"a block has {inner * field.nbytes} bytes, at most {MOST_BYTES} can be a chunk")
    sharding = {
        "chunk_shape": [1, 1, inner, *field.shape],
        "codecs": _codecs(np.dtype(field.dtype).itemsize, "bitshuffle"),
        "index_codecs": _INDEX,
        "index_location": "end",
    }
    value = fill_value(field.dtype)
    expected = _array(
        [views, shards, rows, *field.shape],
        [views, 1, rows, *field.shape],
        field.dtype,
        "Infinity" if isinstance(value, float) else value,
        [{"name": "sharding_indexed", "configuration": sharding}],
        ["view", "shard", "row", *segment.encoding.dimensions(field.name)],
    )
    _require(load_document(data, where), where, expected)


def check_pixels(data: bytes, where: object, count: int, size: int) -> None:
    """Require the metadata of so many canaries' pixels; raises CorruptionError."""
    shape = [count, size, size, 3]
    if int(np.prod(shape, dtype=object)) > MOST_BYTES:
        raise wrong(where, "shape", f"{count} canaries of {size} pixels a side are more than {MOST_BYTES} bytes")
    names = ["canary", "y", "x", "channel"]
    _require(load_document(data, where), where, _array(shape, shape, "uint8", 0, _codecs(1, "noshuffle"), names))


def _array(
    shape: list[int], chunks: list[int], dtype: str, fill: object, codecs: list[dict[str, Any]], names: list[str]
) -> dict[str, Any]:
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": names,
        "zarr_format": 3,
        "node_type": "array",
    }


def _codecs(itemsize: int, shuffle: str) -> list[dict[str, Any]]:
    blosc = {"typesize": itemsize, "cname": "zstd", "shuffle": shuffle, "blocksize": 0}
    return [_INDEX[0], {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]


def _require(document: dict[str, Any], where: object, expected: dict[str, Any]) -> None:
    found = _plain(document)
    if canonical_json(found) == canonical_json(expected):
        return
    for key, ours, _ in differences(found, expected):
        raise wrong(where, key, "not what the record of it implies", ours)
    raise wrong(where, "", "a number has another type than it should have")


def _plain(value: Any) -> Any:
    """Metadata without what no value depends on: extensions that aren't used, and the level of compression."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    left = {key: _plain(part) for key, part in value.items()}
    if left.get("storage_transformers") == []:
        del left["storage_transformers"]
    if "consolidated_metadata" in left and left["consolidated_metadata"] is None:
        del left["consolidated_metadata"]
    if left == {"name": "bytes"}:  # single ones, which have no order
        return _INDEX[0]
    level = left.get("clevel")
    if "cname" in left and type(level) is int and level in _LEVELS:
        del left["clevel"]
    return left
