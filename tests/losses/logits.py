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


def check_float32_inside_autocast(loss: Loss) -> None:
    """The same bits inside autocast, and float32 also of a bfloat16 student."""
    student, teacher, labels = rows()
    expected = call(loss, student, labels, live(teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = call(loss, student, labels, live(teacher))
        near = call(loss, student.bfloat16(), labels, live(teacher))
    assert all(part.dtype == torch.float32 for part in [*same.values(), *near.values()])
    assert torch.equal(same["loss"], expected["loss"])
    torch.testing.assert_close(near["loss"], expected["loss"], rtol=1e-3, atol=0)


def check_a_row_without_a_label(loss: Loss) -> None:
    """It adds nothing to the loss and gets no gradient."""
    student, teacher, labels = rows()
    ours = student.clone().requires_grad_()
    found = call(loss, ours, labels, live(teacher))
    found["loss"].backward()
    assert not ours.grad[4].any()
    assert ours.grad[3].any()
    assert torch.isfinite(ours.grad).all()
    rest = torch.arange(N) != 4
    expected = call(loss, student[rest], labels[rest], live(teacher[rest]))
    torch.testing.assert_close(found["loss"].detach(), expected["loss"])


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
