"""DKD against its equation in float64, its warm-up, and its promises about labels and targets."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from kdpipe.errors import TargetsError
from kdpipe.losses.config import DkdConfig
from kdpipe.losses.dkd import Dkd, dkd, nckd, tckd
from tests.losses.logits import (
    C,
    call,
    check_a_row_without_a_label,
    check_float32_inside_autocast,
    float64,
    live,
    mean_ce,
    rows,
    softmax,
    top,
)


def make(**config) -> Dkd:
    return Dkd(DkdConfig(**config))


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * (np.log(p) - np.log(q))))


def by_hand(student, teacher, labels, temperature) -> tuple[float, float]:
    target, others = [], []
    for s, t, y in zip(*float64(student, teacher, labels), strict=True):
        if y >= 0:
            pairs = [np.array([p[y], np.delete(p, y).sum()]) for p in (softmax(z / temperature) for z in (t, s))]
            target.append(temperature**2 * kl(*pairs))
            others.append(temperature**2 * kl(*(softmax(np.delete(z, y) / temperature) for z in (t, s))))
    return np.mean(target), np.mean(others)


@pytest.mark.parametrize(
    ("config", "epoch", "factor"),
    [
        ({}, 0.0, 1),
        ({"beta": 2.0}, 3.0, 1),
        ({"beta": 8.0, "temperature": 4.0, "warmup": 20}, 0.0, 0),
        ({"beta": 8.0, "temperature": 4.0, "warmup": 20}, 5.0, 0.25),
        ({"alpha": 0.3, "warmup": 20}, 33.5, 1),
    ],
)
def test_equation(config, epoch, factor):
    student, teacher, labels = rows()
    loss = make(**config)
    found = call(loss, student, labels, live(teacher), epoch=epoch, epochs=240)
    c = loss.config
    target, others = by_hand(student, teacher, labels, c.temperature)
    ce = mean_ce(*float64(student, labels))
    assert found["tckd"].item() == pytest.approx(target, rel=1e-6)
    assert found["nckd"].item() == pytest.approx(others, rel=1e-6)
    assert found["ce"].item() == pytest.approx(ce, rel=1e-6)
    assert found["loss"].item() == pytest.approx(ce + factor * (c.alpha * target + c.beta * others), rel=1e-6)


def test_its_parts_make_up_kd():
    """KD is TCKD + (1 - p_y) NCKD: what the decoupling starts from."""
    student, teacher, labels = rows()
    labels[4] = 1
    p_y = teacher.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    whole = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(dim=1)
    parts = tckd(student, teacher, labels) + (1 - p_y) * nckd(student, teacher, labels)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient(temperature):
    student, teacher, labels = rows()
    student = student.double().requires_grad_()
    assert gradcheck(lambda s: dkd(s, teacher.double(), labels, 1, 8, temperature), (student,))


def test_float32_inside_autocast():
    check_float32_inside_autocast(make(temperature=4.0))


def test_a_sure_teacher_and_a_sure_student_are_finite():
    """1 - p_y rounds to 0 on both sides; its logarithm is a sum over the others."""
    labels = torch.zeros(1, dtype=torch.int64)
    student, teacher = torch.tensor([[60.0, 0, 1]]).requires_grad_(), torch.tensor([[90.0, 2, 0]])
    loss = dkd(student, teacher, labels, 1, 1)
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()
    assert loss.item() == pytest.approx(kl(softmax(np.array([2.0, 0])), softmax(np.array([0.0, 1]))), rel=1e-6)


def test_a_row_without_a_label_adds_nothing_and_gets_no_gradient():
    check_a_row_without_a_label(make())


def test_the_target_part_of_top_k_is_exact():
    student, teacher, labels = rows()
    exact = call(make(), student, labels, live(teacher))
    for k in (1, 4, C):
        found = call(make(), student, labels, top(teacher, labels, k))
        torch.testing.assert_close(found["tckd"], exact["tckd"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["loss"], exact["loss"])


def test_topk_targets_serve_temperature_one_only():
    student, teacher, labels = rows()
    assert not make().requirements.dense
    with pytest.raises(TargetsError, match=r"dkd: .*every class.*--targets dense.*--pooled float16"):
        call(make(temperature=4.0), student, labels, top(teacher, labels, 4))
    with pytest.raises(TargetsError, match=r"dkd: .*Pass --cache"):
        call(make(), student, labels, None)
