"""A cache of somebody who means harm: records and metadata of any content, with digests that fit."""

import json
import zlib
from pathlib import Path
from random import Random

from kdpipe.errors import KdpipeError
from tests.fuzz.caches import SmallCache
from tests.fuzz.files import of_content, split
from tests.fuzz.mutate import mutate_tree
from tests.fuzz.target import Target


def make(folder: Path) -> Target:
    cache = SmallCache(folder)

    def run(data: bytes) -> None:
        name, content = split(data)
        with cache.holding(name, content, resealed=True):
            refused = None
            for use in (cache.problems, cache.read):
                try:
                    use()
                except KdpipeError as e:
                    refused = e
            number = zlib.crc32(data)
            if number % 8 == 0:
                cache.pull(number)
            if refused is not None:
                raise refused

    return Target(run, cache.seeds(records=True), 20_000, mutate=of_content(mutate))


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    return json.dumps(mutate_tree(rng, json.loads(data))).encode()
