"""What a weights file says of its model, from hostile hands: it is built, or refused."""

import json
from pathlib import Path
from random import Random

from safetensors.torch import load_file

from kdpipe.models import ModelConfig
from kdpipe.models import matching as fit
from kdpipe.models.build import build
from kdpipe.models.weights import METADATA_KEY, read_metadata
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Target
from tests.fuzz.tensors import weights_file, write_headed


def make(folder: Path) -> Target:
    # A refusal looks through so many networks for the one that the weights are of, which takes seconds.
    fit._MOST = 1
    path = weights_file(folder / "run")
    tensors, header = load_file(path), read_metadata(path)
    config = ModelConfig(weights=str(path))

    def run(data: bytes) -> None:
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            said = data.decode("utf-8", "replace")
        write_headed(path, tensors, METADATA_KEY, said)
        build(config, num_classes=3)

    return Target(run, [json.dumps(header).encode()], 20_000, mutate=mutate)


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Mostly as trees."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, json.loads(data), nan=True)).encode()
