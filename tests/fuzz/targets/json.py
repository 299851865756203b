"""JSON text from outside, through `kdpipe._util.untrusted`."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

from kdpipe._util.untrusted import load_json
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Changed, Target

TREES = [
    {"a": 1, "b": [True, None, "é", -2.5e3], "c": {"d": {"e": []}}},
    [1, [2, [3, [4]]], "text", {"k": ""}],
    {"splits": {"train": {"filenames": ["a.tar"], "shard_lengths": [3]}}},
    {"model": "resnet18", "model_kwargs": {"width": 8}, "num_classes": 7, "mean": [0.5, 0.5, 0.5]},
]


def make(folder: Path) -> Target:
    return Target(run, [json.dumps(tree).encode() for tree in TREES], 600_000, (ValueError,), mutate, 100_000)


def run(data: bytes) -> None:
    value = load_json(data)
    require_finite(value)
    # What was taken is a document that can be written again and means the same.
    if load_json(json.dumps(value, allow_nan=False)) != value:
        raise Changed("written and read again it is another value")


def require_finite(value: Any) -> None:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise Changed("a number that is not finite was accepted")
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Half of them as text, half as trees."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )
