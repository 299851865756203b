"""Seeded damage to safetensors files: flipped bytes, cuts, additions, swapped tensors, edited headers."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors' bytes of a file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    """The file of a header and bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutations(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies, with what was done to each."""
    rng = random.Random(seed)
    kinds = (_flip, _flip_header, _cut, _grow, _zero, _swap, _edit, _edit_json)
    for n in range(count):
        kind = kinds[n % len(kinds)]
        yield f"{n} {kind.__name__}", kind(data, rng)


def _flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _flip_header(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return _flip(data[: 8 + length], rng) + data[8 + length :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:a], data[a:], data[:a] + data[b:]))


def _grow(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((len(data), rng.randrange(len(data))))
    return data[:at] + rng.randbytes(rng.choice((1, 8, 64))) + data[at:]


def _zero(data: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data)), rng.choice((1, 16, 512))
    return data[:at] + bytes(min(n, len(data) - at)) + data[at + n :]


def _swap(data: bytes, rng: random.Random) -> bytes:
    """Two tensors exchange their places."""
    header, body = split(data)
    a, b = rng.sample([name for name in header if name != "__metadata__"], 2)
    header[a], header[b] = header[b], header[a]
    return join(header, body)


def _edit(data: bytes, rng: random.Random) -> bytes:
    """An entry of the header becomes another."""
    header, body = split(data)
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    change = rng.randrange(5)
    if change == 0:
        header[rng.choice(("other", "", "a" * 300))] = header.pop(name)
    elif change == 1:
        entry["dtype"] = rng.choice(("I32", "F32", "BF16", "F64", "X", 3))
    elif change == 2:
        entry["shape"] = rng.choice(([*entry["shape"], 1], entry["shape"][::-1], [2**40], [-1], [], None))
    elif change == 3:
        entry["data_offsets"] = rng.choice(([0, 4], [4, 0], [2**63, 2**64], [0], entry["data_offsets"][::-1]))
    else:
        header.pop(rng.choice(list(header)))
    return join(header, body)


def _edit_json(data: bytes, rng: random.Random) -> bytes:
    """A value in the JSON within the metadata becomes another, or the JSON something else."""
    header, body = split(data)
    ((key, text),) = header["__metadata__"].items()
    change = rng.randrange(6)
    if change == 0:
        header["__metadata__"] = {rng.choice(("kdpipf", "", key.upper())): text}
    elif change == 1:
        header["__metadata__"] = rng.choice(({}, [], None, {key: 3}, {key: rng.choice(("[]", "3", "", "{", "NaN"))}))
    elif change == 2:
        header["__metadata__"][key] = text[: rng.randrange(len(text))] + text[rng.randrange(len(text)) :]
    else:
        inside = json.loads(text)
        name = rng.choice(list(inside))
        replaced = rng.choice((None, 7, -1, "x", [], {}, [0.5]))
        if change == 3:
            del inside[name]
        elif change == 4:
            inside["digest"] = replaced
        else:
            inside[name] = replaced
        header["__metadata__"][key] = json.dumps(inside)
    return join(header, body)
