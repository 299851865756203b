"""Sound weights and checkpoints, and what is read of them."""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.models import ModelConfig, build
from pipeline.models.weights import METADATA_KEY
from pipeline.tensors import write
from pipeline.trainer.files import BEST, CHECKPOINT, RunFolder
from tests.fuzz.mutate import mutate_bytes, mutate_tree

CONFIG = {"model": "resnet10t", "model_kwargs": {"channels": [8, 8, 8, 8]}, "num_classes": 3, "input_size": 32}
_STATE = {
    "number": 3,
    "epoch": 1,
    "config": {"train": {"lr": 0.1, "opt": "adamw"}, "student": CONFIG},
    "state": {"dict": [["w", {"tensor": "optimizer/w"}], ["step", 3.0]]},
}


def weights_file(folder: Path) -> Path:
    """Weights as train-student writes them, of a network of timm's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build(ModelConfig.model_validate(CONFIG))
    RunFolder(folder).write_tensors(BEST, built.module.state_dict(), METADATA_KEY, built.metadata())
    return folder / BEST


def checkpoint_file(folder: Path) -> Path:
    """A checkpoint as train-student writes them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, 2, generator=generator) for name in ("model/w", "optimizer/w", "ema/w")}
    RunFolder(folder).write_checkpoint({**tensors, "order": torch.arange(5)}, _STATE)
    return folder / CHECKPOINT


def write_headed(path: Path, tensors: dict[str, torch.Tensor], key: str, said: Any) -> None:
    """A safetensors file of ours with another description, any text or JSON, whose digests fit where it can have some."""
    if isinstance(said, dict):
        try:
            write(path, tensors, key, said)
            return
        except (ValueError, RecursionError, UnicodeError):  # NaN, or what no JSON of ours can be
            pass
    save_file(tensors, path, {key: said if isinstance(said, str) else json.dumps(said)})


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Tensors that can be compared, bit by bit."""
    return {
        name: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def has_digest(data: bytes) -> bool:
    """Whether a safetensors file of ours holds a digest of its content."""
    return b"sha256" in data[: 8 + int.from_bytes(data[:8], "little")]


def mutate_safetensors(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Half of them by bytes; half by their header, with a length that fits."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.5:
        return mutate_bytes(rng, data, others)
    header = json.dumps(mutate_tree(rng, json.loads(data[8 : 8 + length]), nan=True)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
