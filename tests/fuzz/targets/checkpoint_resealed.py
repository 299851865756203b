"""A checkpoint of somebody who means harm, with digests that fit: a run resumes from it, or refuses."""

import json
import shutil
from pathlib import Path
from random import Random

from safetensors import safe_open
from safetensors.torch import load_file

from kdpipe.trainer import train
from kdpipe.trainer.files import CHECKPOINT
from tests.fuzz.mutate import mutate_tree
from tests.fuzz.target import Target
from tests.fuzz.tensors import make_run, write_headed

_KEY = "kdpipe-checkpoint"


def make(folder: Path) -> Target:
    job = make_run(folder)
    begun, out = folder / "run", folder / "resumed"
    tensors = load_file(begun / CHECKPOINT)
    with safe_open(begun / CHECKPOINT, framework="pt") as file:
        state = json.loads(file.metadata()[_KEY])
    state = {name: value for name, value in state.items() if not name.endswith("_sha256")}

    def run(data: bytes) -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(begun, out)
        write_headed(out / CHECKPOINT, tensors, _KEY, json.loads(data))
        train(job, out, log=lambda _: None)

    return Target(run, [json.dumps(state).encode()], 20_000, mutate=mutate)


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True)).encode()
