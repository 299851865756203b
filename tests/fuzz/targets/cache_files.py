"""A cache with one damaged file: whoever reads it refuses it or reads what was written, and verify sees it."""

from pathlib import Path

from tests.fuzz.caches import SmallCache
from tests.fuzz.files import of_content, split
from tests.fuzz.target import Changed, Target


def make(folder: Path) -> Target:
    cache = SmallCache(folder)

    def run(data: bytes) -> None:
        name, content = split(data)
        damaged = (cache.path / name).read_bytes() != content
        with cache.holding(name, content):
            if damaged != bool(cache.problems()):
                raise Changed(f"verify {'misses' if damaged else 'invents'} damage of {name}")
            if cache.read() != cache.sound:
                raise Changed(f"another cache is read from a damaged {name}")

    return Target(run, cache.seeds(records=False), 20_000, mutate=of_content())
