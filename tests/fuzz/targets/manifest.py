"""timm's _info.json, through what finds shards."""

import json
from pathlib import Path
from random import Random

from kdpipe.shards.sources import resolve
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Changed, Target

_ONE = {"splits": {"train": {"name": "train", "filenames": ["a.tar", "b.tar"], "shard_lengths": [3, 4]}}}
_TWO = {"splits": {**_ONE["splits"], "val": {"filenames": ["c.tar"], "shard_lengths": [1], "num_samples": 1}}}


def make(folder: Path) -> Target:
    inside = folder / "one" / "two"
    inside.mkdir(parents=True)
    for name in "abc":
        (inside / f"{name}.tar").write_bytes(b"")
    path = inside / "_info.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        found = resolve(str(path), "train")
        if not found.urls or not all(isinstance(url, str) for url in found.urls):
            raise Changed("shards that are no names")

    return Target(run, [json.dumps(tree).encode() for tree in (_ONE, _TWO)], 60_000, mutate=mutate, guided=10_000)


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Mostly as trees."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True)).encode()
