"""YAML text from outside, through `kdpipe._util.untrusted`."""

import json
from pathlib import Path
from random import Random

import yaml

from kdpipe._util.untrusted import load_yaml
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Target

SEEDS = [
    b"views: {seed: 3, scale: [0.5, 1.0]}\ntrain:\n  lr: 1e-3\n  opt: adamw\n",
    b"a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}, e: 'text'}\n",
    b"- 1\n- 2020-01-01\n- null\n- |\n  lines\n  of text\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
]


def make(folder: Path) -> Target:
    return Target(run, SEEDS, 60_000, (ValueError,), mutate, 20_000)


def run(data: bytes) -> None:
    load_yaml(data.decode("utf-8"))


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Mostly as text; sometimes as a tree."""
    if rng.random() < 0.8 or b"&" in data or b"2020" in data:
        return mutate_bytes(rng, data, others)
    # JSON is YAML, and written much faster.
    return json.dumps(mutate_tree(rng, yaml.safe_load(data), nan=True)).encode()
