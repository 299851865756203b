"""Bucket KD against its definition in float64: one class for all that wasn't kept."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.bucket import BucketKd, bucket_kd
from kdpipe.losses.config import BucketConfig
from kdpipe.losses.logit import kd
from kdpipe.targets import Targets, mix_targets
from tests.losses.logits import C, N, call, float64, live, mean_ce, rows, softmax, top


def make(**config) -> BucketKd:
    return BucketKd(BucketConfig(**config))


def by_hand(student, teacher, k) -> float:
    losses = []
    for p_s, p_t in zip(*(softmax(z) for z in float64(student, teacher)), strict=True):
        kept = np.argsort(-p_t)[:k]
        q_s, q_t = (np.append(p[kept], np.delete(p, kept).sum()) for p in (p_s, p_t))
        losses.append(np.sum(q_t * np.log(q_t / q_s)))
    return float(np.mean(losses))


@pytest.mark.parametrize("k", [1, 4, C - 1])
@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
def test_equation(k, alpha):
    student, teacher, labels = rows()
    expected, ce = by_hand(student, teacher, k), mean_ce(*float64(student, labels))
    for targets in (top(teacher, labels, k), live(teacher)):
        found = call(make(alpha=alpha, k=k), student, labels, targets)
        assert found["bucket"].item() == pytest.approx(expected, rel=1e-6)
        assert found["loss"].item() == pytest.approx(alpha * expected + (1 - alpha) * ce, rel=1e-6)
        assert ("ce" in found) == (alpha < 1)


def test_online_and_cache_give_the_same_gradient():
    student, teacher, labels = rows()
    gradients = []
    for targets in (top(teacher, labels, 3), live(teacher)):
        ours = student.clone().requires_grad_()
        call(make(k=3), ours, labels, targets)["loss"].backward()
        gradients.append(ours.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [C, C + 7])
def test_with_all_classes_it_is_kd(k):
    student, teacher, labels = rows()
    expected = kd(student, teacher).mean()
    for targets in (top(teacher, labels, C), live(teacher)):
        torch.testing.assert_close(call(make(k=k, alpha=1.0), student, labels, targets)["bucket"], expected)


def test_gradient():
    student, teacher, _ = rows()
    index = teacher.topk(4, dim=1).indices
    assert gradcheck(lambda s: bucket_kd(s, teacher.double(), index), (student.double().requires_grad_(),))


def test_float32_inside_autocast():
    student, teacher, labels = rows()
    targets = top(teacher, labels, 4)
    expected = call(make(), student, labels, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same = call(make(), student, labels, targets)
        near = call(make(), student.bfloat16(), labels, targets)
    assert all(part.dtype == torch.float32 for part in [*same.values(), *near.values()])
    assert torch.equal(same["loss"], expected["loss"])
    torch.testing.assert_close(near["loss"], expected["loss"], rtol=1e-3, atol=0)


def test_mixed_top_k_targets_keep_the_likeliest_classes_of_the_mixture():
    student, teacher, labels = rows()
    lam = torch.full((N,), 0.6)
    sets = [top(t, labels, 3) for t in (teacher, teacher.flip(0))]
    found = call(make(k=2, alpha=1.0), student, labels, mix_targets(*sets, lam, labels))
    mixture = 0.6 * sets[0].log_probs.double().exp() + 0.4 * sets[1].log_probs.double().exp()
    assert found["loss"].item() == pytest.approx(by_hand(student, mixture.log(), 2), rel=1e-6)


def test_what_is_missing_is_named():
    student, _, labels = rows()
    assert not make().requirements.dense
    assert not make(alpha=1.0).requirements.labels
    with pytest.raises(TargetsError, match=r"bucket-kd: .*Pass --cache"):
        call(make(), student, labels, None)
    with pytest.raises(TargetsError, match=r"bucket-kd: .*logits.*--targets topk"):
        call(make(), student, labels, Targets(pooled=torch.zeros(N, 3)))
