"""DIST against its equation in float64 with NumPy's own correlation."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.config import DistConfig
from kdpipe.losses.dist import Dist, dist, dist_inter, dist_intra, pearson
from tests.losses.logits import call, float64, live, mean_ce, rows, softmax, top


def make(**config) -> Dist:
    return Dist(DistConfig(**config))


def by_hand(student, teacher, tau) -> tuple[float, float]:
    y_s, y_t = (softmax(z / tau) for z in float64(student, teacher))

    def mean(a, b):
        # NumPy's knows no eps: the norms' product makes up for it.
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
        plain = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
        return np.mean(plain * norms / (norms + 1e-8))

    return 1 - mean(y_s, y_t), 1 - mean(y_s.T, y_t.T)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_equation(tau):
    student, teacher, labels = rows()
    found = call(make(tau=tau), student, labels, live(teacher))
    inter, intra = by_hand(student, teacher, tau)
    ce = mean_ce(*float64(student, labels))
    assert found["dist_inter"].item() == pytest.approx(inter, rel=1e-6)
    assert found["dist_intra"].item() == pytest.approx(intra, rel=1e-6)
    assert found["ce"].item() == pytest.approx(ce, rel=1e-6)
    assert found["loss"].item() == pytest.approx(ce + 2 * tau**2 * (inter + intra), rel=1e-6)
    assert dist(student, teacher, tau).item() == pytest.approx(2 * tau**2 * (inter + intra), rel=1e-6)


def test_it_asks_for_the_same_relations_and_not_for_the_same_values():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(pearson(x, 3 * x - 2), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-7)
    assert dist_inter(x, x).item() == pytest.approx(0, abs=1e-6)
    assert dist_intra(x, x).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_gradient(tau):
    student, teacher, _ = rows()
    student = student.double().requires_grad_()
    assert gradcheck(lambda s: dist(s, teacher.double(), tau), (student,))


def test_float32_inside_autocast():
    student, teacher, labels = rows()
    expected = call(make(), student, labels, live(teacher))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = call(make(), student, labels, live(teacher))
        near = call(make(), student.bfloat16(), labels, live(teacher))
    assert all(part.dtype == torch.float32 for part in [*same.values(), *near.values()])
    assert torch.equal(same["loss"], expected["loss"])
    torch.testing.assert_close(near["loss"], expected["loss"], rtol=1e-3, atol=0)


def test_constant_rows_and_columns_have_a_loss_and_a_gradient():
    """A student with the same output for every row, as it may be at the start."""
    _, teacher, labels = rows()
    student = torch.zeros_like(teacher).requires_grad_()
    found = call(make(), student, labels, live(teacher))
    found["loss"].backward()
    assert found["dist_inter"].item() == found["dist_intra"].item() == 1
    assert torch.isfinite(student.grad).all()
    one = call(make(), student[:1], labels[:1], live(teacher[:1]))
    assert torch.isfinite(one["loss"])


def test_rows_without_a_label_count():
    student, teacher, labels = rows()
    unlabelled = call(make(), student, torch.full_like(labels, -1), live(teacher))
    assert unlabelled["ce"].item() == 0
    torch.testing.assert_close(unlabelled["loss"], dist(student, teacher))


def test_top_k_is_refused():
    student, teacher, labels = rows()
    with pytest.raises(TargetsError, match=r"dist: .*every class.*--targets dense.*--pooled float16"):
        call(make(), student, labels, top(teacher, labels, 4))
    with pytest.raises(TargetsError, match=r"dist: .*Pass --cache"):
        call(make(), student, labels, None)
