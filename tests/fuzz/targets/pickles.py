"""Checkpoints of others: torch.save in both of its formats, read without running what they hold."""

import argparse
import io
import zipfile
from pathlib import Path
from random import Random

import torch

from kdpipe.models.state import read_state
from tests.fuzz.mutate import CODE, mutate_bytes
from tests.fuzz.target import Changed, Target


def make(folder: Path) -> Target:
    path = folder / "weights.pth"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        state = read_state(path)
        if not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise Changed("something else than tensors")

    return Target(run, [*seeds()], 40_000, mutate=mutate)


def seeds() -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    state = {"w": torch.randn(4, 3, generator=generator), "b": torch.zeros(2, dtype=torch.float16)}
    found = []
    for content in (state, {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=zipped)
            found.append(out.getvalue())
    return found


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """By bytes; or in one member of a zip, with checksums that fit; a name of code among the tokens."""
    if rng.random() < 0.5 or data[:2] != b"PK":
        out = mutate_bytes(rng, data, others)
        return out.replace(b"argparse\nNamespace\n", CODE.replace(":", "\n").encode() + b"\n", rng.randrange(2))
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    chosen = rng.choice(source.namelist())
    with zipfile.ZipFile(out, "w") as made:
        for name in source.namelist():
            content = source.read(name)
            if name == chosen:
                content = mutate_bytes(rng, content, [content])
            made.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()
