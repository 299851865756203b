"""Params files, from text to checked settings."""

import json
from pathlib import Path
from random import Random

import yaml

from kdpipe._util.untrusted import load_yaml
from kdpipe.errors import ConfigError
from kdpipe_stages import settings as params
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.target import Changed, Target

_TREES = [
    {"views": {"seed": 3, "scale": [0.5, 1.0], "auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8}},
    {"teacher": {"model": "resnet18", "model_kwargs": {"width": 8}, "mean": [0.5, 0.5, 0.5], "layers": {}}},
    {"train": {"lr": 0.001, "epochs": 3, "opt": "adamw"}, "loader": {"workers": 2, "streams": 3}},
    {"loss": {"name": "kd+fd", "kd": {"temperature": 2.0, "alpha": 0.9}, "student_layers": ["a"]}, "targets": {"k": 4}},
    {"teacher": {"members": [{"model": "a", "weights": "a.pth"}, {"model": "b"}], "combine": "logits"}},
]
_TEXT = [b"views: &v\n  seed: 3\nteacher:\n  model: resnet18\n  num_classes: 1000\ntrain: {lr: 1e-3}\n"]


def make(folder: Path) -> Target:
    path = folder / "params.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _without_own_loss(data)
        settings = params.load(str(path))
        # What was taken can be written down, which caches and runs do.
        document = json.dumps(settings.model_dump(mode="json"), allow_nan=False)
        if params.Params.model_validate(json.loads(document)) != settings:
            raise Changed("written and read again they are other settings")

    return Target(run, [*(json.dumps(tree).encode() for tree in _TREES), *_TEXT], 40_000, mutate=mutate)


def _without_own_loss(data: bytes) -> None:
    """Refuse what names the code of a loss: in the user's own file that is allowed, and its import is no finding."""
    try:
        tree = load_yaml(data.decode())
    except ValueError:
        return
    loss = tree.get("loss") if isinstance(tree, dict) else None
    if isinstance(loss, dict) and ":" in str(loss.get("name")):
        raise ConfigError("a loss of the user's")


def mutate(rng: Random, data: bytes, others: list[bytes]) -> bytes:
    """Half of them as text, half as trees."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data, others)
    return json.dumps(mutate_tree(rng, yaml.safe_load(data), nan=True)).encode()
