"""RKD against its equations in float64, a few vertices at a time, and by two processes as by one."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses import rkd
from kdpipe.losses.config import RkdConfig
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.rkd import Rkd, rkd_angle, rkd_distance
from kdpipe.targets import Labels, Targets
from tests.losses.features import N, call, drawn, float64, output, pooled


def huber(difference: np.ndarray) -> np.ndarray:
    far = np.abs(difference)
    return np.where(far < 1, 0.5 * far**2, far - 0.5)


def distances(x: np.ndarray) -> np.ndarray:
    d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    return d / d[d > 0].mean()


def angles(x: np.ndarray) -> np.ndarray:
    """Cosines at (vertex, one end, other end)."""
    found = np.zeros((len(x),) * 3)
    for i, j, k in itertools.product(range(len(x)), repeat=3):
        a, b = x[j] - x[i], x[k] - x[i]
        if i not in (j, k):
            found[i, j, k] = a @ b / np.sqrt((a @ a) * (b @ b))
    return found


def test_equation():
    student, teacher = pooled()
    found = call(Rkd(RkdConfig()), output(pooled=student), Targets(pooled=teacher))
    s, t = float64(student, teacher)
    distance, angle = huber(distances(s) - distances(t)).mean(), huber(angles(s) - angles(t)).mean()
    assert found["rkd_distance"].item() == pytest.approx(distance, rel=1e-6)
    assert found["rkd_angle"].item() == pytest.approx(angle, rel=1e-6)
    assert found["loss"].item() == pytest.approx(25 * distance + 50 * angle, rel=1e-6)


def test_gradients():
    student, teacher = drawn(5, 3, seed=1).double().requires_grad_(), drawn(5, 4, seed=2).double()
    assert gradcheck(lambda s: rkd_distance(s, teacher), (student,))
    assert gradcheck(lambda s: rkd_angle(s, teacher), (student,))


def test_few_vertices_at_a_time_are_the_same(monkeypatch):
    student, teacher = pooled()

    def gradient() -> torch.Tensor:
        own = student.clone().requires_grad_()
        rkd_angle(own, teacher).sum().backward()
        return own.grad

    expected = gradient()
    monkeypatch.setattr(rkd, "_AT_ONCE", 2 * N * 7)
    torch.testing.assert_close(gradient(), expected)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(rkd_angle(student, teacher, some), rkd_angle(student, teacher)[some])


def test_bfloat16_is_near():
    student, teacher = pooled(64)
    student = student.bfloat16()
    expected = call(Rkd(RkdConfig()), output(pooled=student.float(), rows=64), Targets(pooled=teacher))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(Rkd(RkdConfig()), output(pooled=student, rows=64), Targets(pooled=teacher))["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_and_equal_ones_give_finite_gradients(rows):
    for student in (pooled()[0][:rows], torch.ones(rows, 4)):
        own = student.clone().requires_grad_()
        teacher = Targets(pooled=pooled()[1][:rows])
        loss = call(Rkd(RkdConfig()), output(pooled=own, rows=rows), teacher)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert own.grad.isfinite().all()
    collapsed = torch.ones(N, 4, requires_grad=True)
    call(Rkd(RkdConfig()), output(pooled=collapsed), Targets(pooled=pooled()[1]))["loss"].backward()
    assert collapsed.grad.abs().max() < 100


def test_a_cache_without_the_pooled_feature_is_refused():
    with pytest.raises(TargetsError, match="--pooled"):
        call(Rkd(RkdConfig()), output(pooled=pooled()[0]), Targets(map=torch.zeros(N, 2, 1, 1)))


@pytest.mark.parametrize("cut", [0, 2, N])
def test_two_processes_are_as_one(monkeypatch, cut):
    student, teacher = pooled()
    student.requires_grad_()
    expected = call(Rkd(RkdConfig()), output(pooled=student), Targets(pooled=teacher))
    (gradient,) = torch.autograd.grad(expected["loss"], student)
    ranks = torch.tensor([0] * cut + [1] * (N - cut))
    # What all processes have, whose gradients add up.
    everyone = {(torch.float32, 4): student, (torch.float32, 7): teacher, (torch.int64, 0): ranks}
    monkeypatch.setattr(rkd, "gathered", lambda x, _: everyone[x.dtype, x.shape[1] if x.ndim == 2 else 0])
    found = []
    for rank, part in enumerate((slice(cut), slice(cut, None))):
        monkeypatch.setattr(rkd.distributed, "get_rank", lambda rank=rank: rank)
        own = StudentOutput(torch.zeros(len(student[part]), 2), student[part])
        labels = Labels(torch.full((len(own.logits),), -1))
        found.append(Rkd(RkdConfig())(own, labels, Targets(pooled=teacher[part]), Context(N, 0, world=2)))
    for name, value in expected.items():
        torch.testing.assert_close((found[0][name] + found[1][name]) / 2, value)
    mean = sum(parts["loss"] for parts in found) / 2
    torch.testing.assert_close(torch.autograd.grad(mean, student)[0], gradient, rtol=1e-5, atol=1e-5)
