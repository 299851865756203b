"""Class maps, as JSON and as text."""

import json
from pathlib import Path
from random import Random

from kdpipe.models.class_map import read_class_map
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Changed, Target


def make(folder: Path) -> Target:
    path = folder / "map.txt"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        rows = read_class_map(path)
        if not rows or not all(type(row) is int and row >= 0 for row in rows):
            raise Changed(f"rows that are none: {str(rows)[:80]}")

    return Target(run, [b"[3, 1, 4, 1, 5]", b"3\n1\n\n4\n", b"[\n 0,\n 999\n]"], 200_000, mutate=mutate, guided=30_000)


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    if rng.random() < 0.6 or data[:1] != b"[":
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True)).encode()
