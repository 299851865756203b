"""What benches run on when the user names no data: the digits, a cheap teacher, made-up logits."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdpipe.shards import Index, build_index
from kdpipe.shards.prepare import prepare_digits

# Of the papers, but for mixing, which is no part of a transform.
RECIPE: dict[str, Any] = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder for caches and shards."""
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        yield Path(folder)


def index_or_digits(shards: str | None, folder: Path, limit: int | None) -> Index:
    """The user's index, or one of scikit-learn's digits made on the spot."""
    if shards is not None:
        return Index.open(shards).limit(limit)
    prepare_digits(folder / "digits")
    return build_index(str(folder / "digits" / "train"), folder / "digits.index", num_classes=10).limit(limit)


def cheap_teacher(num_classes: int = 1000) -> nn.Module:
    """A teacher that costs next to nothing: a few pooled pixels and one linear layer, with fixed weights.

    For measuring what surrounds a teacher. Its logits are as peaked as a trained network's.
    """
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def made_up_logits(rows: int, classes: int = 1000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, classes) and labels (rows,) of an imaginary trained classifier.

    Each class has a few it is confused with. The label is raised most, its neighbours less, noise does the
    rest: about 81 % top-1, a mean top-1 probability of .72 and .90 in the top 16, a little flatter than ImageNet
    classifiers are, and so no easier to compress.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(classes, 24, generator=generator)
    likeness = places @ places.T / 24**0.5
    labels = torch.randint(0, classes, (rows,), generator=generator)
    logits = 3 * likeness[labels] + 0.7 * torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), labels] += 3 * torch.randn(rows, generator=generator) - 1
    return logits, labels
