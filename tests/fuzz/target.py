"""What a parser under fuzz is, and what it may do with its input."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kdpipe.errors import KdpipeError
from tests.fuzz.mutate import mutate_bytes

Mutate = Callable[[Random, bytes, list[bytes]], bytes]

# In the order of the report. Each is a module of tests.fuzz.targets with a function `make`.
NAMES = (
    *("tar", "labels", "images", "manifest", "index", "index_resealed"),
    *("records", "records_resealed", "cache_files", "chunks", "cache_record"),
    *("weights", "weights_header", "pickles", "checkpoint", "checkpoint_resealed", "class_map"),
    *("params", "json", "yaml"),
)


class Changed(Exception):
    """Input was accepted, and means something else than what was written."""


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: parses; a pure function of its input. It returns where that is accepted, and raises one of `refusals`
            where it is not; whatever else it raises is a finding, `Changed` among them.
        seeds: sound inputs, made by the project's own writers.
        executions: how many `make fuzz` does.
        refusals: exceptions that refuse input.
        mutate: makes an input of a seed.
        guided: executions by atheris besides, guided by the coverage of pipeline/; 0 for what isn't Python of ours.
    """

    run: Callable[[bytes], None]
    seeds: list[bytes]
    executions: int
    refusals: tuple[type[Exception], ...] = (KdpipeError,)
    mutate: Mutate = field(default=mutate_bytes)
    guided: int = 0


def make(name: str, folder: Path) -> Target:
    """A target by name; its files lie in `folder`, which should be in memory."""
    target: Target = importlib.import_module(f"tests.fuzz.targets.{name}").make(folder)
    return target


def case(target: Target, name: str, seed: int, number: int) -> bytes:
    """Input `number` of a run with this seed: always the same bytes."""
    if number < len(target.seeds):
        return target.seeds[number]
    rng = Random(f"{name} {seed} {number}")
    return target.mutate(rng, rng.choice(target.seeds), target.seeds)
