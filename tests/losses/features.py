"""Features that the tests of feature losses share, and what holds for every such loss."""

import numpy as np
import torch

from kdpipe.losses.base import Loss
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.targets import Labels, Targets

N, C = 6, 5  # rows, classes
NARROW, WIDE = 4, 7  # widths of student and teacher


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def maps(student: int = 4, teacher: int = 4, rows: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Square maps of the two, with grids of these sides."""
    return drawn(rows, NARROW, student, student, seed=1), drawn(rows, WIDE, teacher, teacher, seed=2, scale=3, shift=1)


def pooled(rows: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    return drawn(rows, NARROW, seed=3), drawn(rows, WIDE, seed=4, scale=2)


def output(
    *maps: torch.Tensor, pooled: torch.Tensor | None = None, logits: torch.Tensor | None = None, rows: int = N
) -> StudentOutput:
    return StudentOutput(torch.zeros(rows, C) if logits is None else logits, pooled, maps)


def call(
    loss: Loss, output: StudentOutput, targets: Targets | None, labels: torch.Tensor | None = None, **context: float
) -> dict[str, torch.Tensor]:
    """One process's loss of a whole batch, without labels unless they are given."""
    hard = torch.full((len(output.logits),), -1) if labels is None else labels
    known = int((hard >= 0).sum())
    return loss(output, Labels(hard), targets, Context(len(hard), known, **context))  # type: ignore[arg-type]


def in_two_parts(loss: Loss, output: StudentOutput, targets: Targets, cut: int) -> dict[str, torch.Tensor]:
    """The mean over two processes of the losses of their parts, the first having `cut` rows."""
    total: dict[str, torch.Tensor] = {}
    for part in (slice(cut), slice(cut, None)):
        own = StudentOutput(
            output.logits[part],
            None if output.pooled is None else output.pooled[part],
            tuple(m[part] for m in output.maps),
        )
        kept = Targets(
            pooled=None if targets.pooled is None else targets.pooled[part],
            map=None if targets.map is None else targets.map[part],
        )
        labels = Labels(torch.full((len(own.logits),), -1))
        found = loss(own, labels, kept, Context(len(output.logits), 0, world=2))
        total = {name: total.get(name, 0) + value / 2 for name, value in found.items()}
    return total


def conv1x1(conv: torch.nn.Conv2d, x: torch.Tensor) -> np.ndarray:
    """By hand, in float64."""
    weight = conv.weight.detach().double().numpy()[:, :, 0, 0]
    out = np.einsum("dc,nchw->ndhw", weight, x.double().numpy())
    return out if conv.bias is None else out + conv.bias.detach().double().numpy()[:, None, None]


def average_by(x: np.ndarray, factor: int) -> np.ndarray:
    """(n, c, h, w) -> the means of squares of `factor` positions a side."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // factor, factor, w // factor, factor).mean(axis=(3, 5))


def float64(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.detach().double().numpy() for t in tensors]
