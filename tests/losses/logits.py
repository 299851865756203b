"""Logits, labels and targets that the tests of logit losses share, and plain float64 arithmetic on them."""

import numpy as np
import torch

from kdpipe.losses.base import Loss
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.targets import Encoding, Labels, Targets
from kdpipe.teacher import TeacherOutput

N, C = 12, 9


def rows(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher (N, C), labels (N,), one of them missing."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(N, C, generator=generator) * 3
    teacher = torch.randn(N, C, generator=generator) * 4
    labels = torch.randint(0, C, (N,), generator=generator)
    labels[4] = -1
    return student, teacher, labels


def live(teacher: torch.Tensor) -> Targets:
    return Targets.live(TeacherOutput(teacher))


def top(teacher: torch.Tensor, labels: torch.Tensor, k: int) -> Targets:
    """As a cache of the top k gives them back."""
    encoding = Encoding("topk", k, "float32", teacher.shape[1])
    arrays = encoding.encode(TeacherOutput(teacher), labels)
    return encoding.decode({name: torch.from_numpy(array) for name, array in arrays.items()})


def call(
    loss: Loss,
    student: torch.Tensor,
    labels: torch.Tensor | Labels,
    targets: Targets | None,
    **context: float,
) -> dict[str, torch.Tensor]:
    """One process's loss of a whole batch."""
    labels = labels if isinstance(labels, Labels) else Labels(labels)
    known = int((labels.hard >= 0).sum())
    return loss(StudentOutput(student), labels, targets, Context(len(student), known, **context))  # type: ignore[arg-type]


def softmax(z: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def mean_ce(student: np.ndarray, labels: np.ndarray) -> float:
    """-log p_s(y) over the labelled rows."""
    return float(np.mean([-np.log(softmax(s)[y]) for s, y in zip(student, labels, strict=True) if y >= 0]))


def float64(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]
