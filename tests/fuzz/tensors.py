"""Sound weights and checkpoints, and what is read of them."""

import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from kdpipe._util.tensors import write
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.models.weights import METADATA_KEY
from kdpipe.trainer import TrainingJob, TrainingProgress, train
from kdpipe.trainer.files import BEST, RunFolder
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.small import make_index
from tests.trainer.tiny import make_job

STUDENT = {"num_classes": 10, "model_kwargs": {"width": 2, "dropout": 0.0}}
CONFIG = {"model": "resnet10t", "model_kwargs": {"channels": [8, 8, 8, 8]}, "num_classes": 3, "input_size": 32}


class _Stopped(Exception):
    """The run is to end here."""


def weights_file(folder: Path) -> Path:
    """Weights as train-student writes them, of a network of timm's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build(ModelConfig.model_validate(CONFIG))
    RunFolder(folder).write_tensors(BEST, built.module.state_dict(), METADATA_KEY, built.metadata())
    return folder / BEST


def make_run(folder: Path) -> TrainingJob:
    """A job whose run, folder/run, was ended in its second epoch, after its last checkpoint."""
    index = make_index(folder)
    job = make_job(index, epochs=2, batch_size=4, checkpoint_steps=1, warmup_epochs=0, student=STUDENT)

    def on_step(step: TrainingProgress) -> None:
        if (step.epoch, step.step) == (2, 2):
            raise _Stopped

    with suppress(_Stopped):
        train(job, folder / "run", log=lambda _: None, on_step=on_step)
    return job


def write_headed(path: Path, tensors: dict[str, torch.Tensor], key: str, said: Any) -> None:
    """A safetensors file with another description of ours, text or JSON, and digests that fit if it can have them."""
    if isinstance(said, dict):
        try:
            write(path, tensors, key, said)
            return
        except (ValueError, RecursionError, UnicodeError):  # NaN, or what no JSON of ours can be
            pass
    # The header is UTF-8, which has no halves of surrogate pairs.
    text = said if isinstance(said, str) else json.dumps(said)
    save_file(tensors, path, {key: text.encode(errors="replace").decode()})


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
