"""The file that --manifest writes, and opening the cache that it names."""

import contextlib
import json
from pathlib import Path
from random import Random

from kdpipe.cache import Cache, CacheReader, Store
from kdpipe.cache.manifest import CacheRecord, open_reader
from tests.fuzz.caches import SmallCache
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Changed, Target


def make(folder: Path) -> Target:
    small = SmallCache(folder)

    reader = CacheReader(str(small.path), small.index)
    path = folder / "record.json"
    record = CacheRecord.of(Cache(Store(small.path)), reader.encoding, reader.views)
    record.write(str(path))
    views = set(record.views)

    def run(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.chdir(folder):  # a changed path may be relative
            opened = open_reader(str(path), small.index)
        if not set(opened.views) <= views:
            raise Changed(f"other views than the cache has: {opened.views}")

    return Target(run, [path.read_bytes()], 20_000, mutate=mutate)


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Mostly as trees."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True)).encode()
