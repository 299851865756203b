"""SRRL against its equation in float64, and what its last ReLU can't reach."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.config import SrrlConfig
from kdpipe.losses.inputs import FeatureShapes, TeacherInfo
from kdpipe.losses.srrl import Srrl, srrl
from kdpipe.targets import Targets
from tests.losses.features import NARROW, WIDE, C, N, call, conv1x1, drawn, float64, maps, output, pooled


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDE, C).requires_grad_(False)


def make(head: nn.Linear, **config) -> Srrl:
    torch.manual_seed(0)
    return Srrl(SrrlConfig(**config), FeatureShapes(C, maps=((NARROW, 4, 4),)), TeacherInfo(C, pooled=WIDE, head=head))


@pytest.mark.parametrize("relu", [False, True])
def test_equation(head, relu):
    loss = make(head, relu=relu, regression=5)
    student, teacher = maps()[0], pooled()[1].abs()
    found = call(loss, output(student), Targets(pooled=teacher))
    x = conv1x1(loss.connector[0], student)
    x = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    s = (np.maximum(x, 0) if relu else x).mean(axis=(2, 3))
    t, weight, bias = float64(teacher, head.weight, head.bias)
    feature = ((s - t) ** 2).mean()
    logits = ((s @ weight.T + bias - t @ weight.T - bias) ** 2).mean()
    assert found["srrl_feature"].item() == pytest.approx(feature, rel=1e-6)
    assert found["srrl_logits"].item() == pytest.approx(logits, rel=1e-6)
    assert found["loss"].item() == pytest.approx(feature + 5 * logits, rel=1e-6)


def test_gradient(head):
    student, teacher = drawn(3, WIDE, seed=1).double().requires_grad_(), drawn(3, WIDE, seed=2).double()
    assert gradcheck(lambda s: srrl(s, teacher, head.weight, head.bias), (student,))


def test_bfloat16_is_near(head):
    loss = make(head)
    student, teacher = maps(8, 8, rows=32)[0], pooled(32)[1]
    expected = call(loss, output(student, rows=32), Targets(pooled=teacher))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(loss, output(student, rows=32), Targets(pooled=teacher))["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_only_the_connector_is_trained_and_kept(head):
    loss = make(head)
    call(loss, output(maps()[0]), Targets(pooled=pooled()[1]))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert {name.partition(".")[0] for name in loss.state_dict()} == {"connector"}
    assert head.weight.grad is None
    assert loss.to(torch.float64).weight.dtype == torch.float64  # moves along


def test_a_relu_before_features_with_both_signs_is_refused(head):
    with pytest.raises(TargetsError, match=r"negative.*loss\.srrl\.relu=false"):
        call(make(head, relu=True), output(maps()[0]), Targets(pooled=pooled()[1]))


def test_a_cache_without_its_needs_is_refused(head):
    with pytest.raises(TargetsError, match="--pooled"):
        Srrl(SrrlConfig(), FeatureShapes(C, maps=((NARROW, 4, 4),)), TeacherInfo(C, pooled=WIDE))
    with pytest.raises(TargetsError, match="--pooled"):
        call(make(head), output(maps()[0]), Targets(log_probs=torch.zeros(N, C)))
