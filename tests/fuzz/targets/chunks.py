"""Chunk files of any content, with checksums and digests that fit."""

from pathlib import Path
from random import Random

import google_crc32c

from tests.fuzz.caches import SmallCache
from tests.fuzz.files import of_content, split
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.target import Target


def make(folder: Path) -> Target:
    cache = SmallCache(folder)
    seeds = [seed for seed in cache.seeds(records=False) if b"/c/" in seed.partition(b"\0")[0]]

    def run(data: bytes) -> None:
        name, content = split(data)
        with cache.holding(name, content, resealed=True):
            cache.read()

    return Target(run, seeds, 20_000, mutate=of_content(mutate))


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """The file, with a checksum of its index and of its first chunk that are right."""
    out = bytearray(mutate_bytes(rng, data, others))
    for length in (16, 32, 48, 64, 96, 128):  # of an index: of 16 bytes a chunk
        if len(data) > length + 4 and _crc(data[-4 - length : -4]) == data[-4:] and len(out) > length + 4:
            start, size = (int.from_bytes(out[-4 - length + i : -4 - length + i + 8], "little") for i in (0, 8))
            if 4 < size <= len(out) and start + size <= len(out):
                out[start + size - 4 : start + size] = _crc(out[start : start + size - 4])
            out[-4:] = _crc(out[-4 - length : -4])
    return bytes(out)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(bytes(data))).to_bytes(4, "little")
