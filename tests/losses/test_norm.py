"""NORM against its equation in float64, its schedule, and which maps it standardises."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError, TrainingError
from kdpipe.losses.config import NormConfig
from kdpipe.losses.inputs import Context, FeatureShapes, TeacherInfo
from kdpipe.losses.norm import Norm, norm
from kdpipe.models import ModelConfig
from kdpipe.models.build import build
from kdpipe.models.hooks import StudentHooks
from kdpipe.models.wrappers.norm import NormStudent
from kdpipe.targets import Targets
from tests.losses.features import WIDE, C, N, call, drawn, float64, maps, output
from tests.losses.logits import softmax

TIMES = 3  # N of the paper
LABELS = torch.tensor([0, 3, -1, 2, 4, 1])
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 12, 16)}


def info(**changes: object) -> TeacherInfo:
    # Of a map with both signs, one channel of which never varied.
    std = drawn(WIDE, seed=8).abs() + 0.5
    std[2] = 0
    said = {"map": (WIDE, 4, 4), "mean": drawn(WIDE, seed=7), "std": std}
    return TeacherInfo(C, **{**said, **changes})


def make(**config: object) -> Norm:
    config = {"expansion": TIMES, **config}
    return Norm(NormConfig(**config), FeatureShapes(C, maps=((TIMES * WIDE, 4, 4),)), info())


def expanded(side: int = 4, rows: int = N) -> torch.Tensor:
    return drawn(rows, TIMES * WIDE, side, side, seed=5)


def standard(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-7) * 2.5


def largest_by(x: np.ndarray, factor: int) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // factor, factor, w // factor, factor).max(axis=(3, 5))


def matched(e: np.ndarray, t: np.ndarray) -> float:
    """The sum over slices of mean squared errors."""
    e, t = largest_by(e, e.shape[2] // 4), largest_by(t, t.shape[2] // 4)
    return sum(((e[:, i * WIDE : (i + 1) * WIDE] - t) ** 2).mean() for i in range(TIMES))


@pytest.mark.parametrize(("fine", "coarse"), [(4, 4), (8, 4), (4, 8)])
def test_equation(fine, coarse):
    loss = make(ce=0.5, kd=0.7, matching=2.0, standardise_map=False)
    says, told = drawn(N, C, seed=6, scale=9), drawn(N, C, seed=9, scale=4)
    e, t = expanded(fine), maps(4, coarse)[1]
    targets = Targets(told.log_softmax(dim=1), dense=True, map=t)
    found = call(loss, output(e, logits=says), targets, LABELS, epoch=30, epochs=100)
    z_s, z_t, e, t = float64(says, told, e, t)
    z_s, z_t = standard(z_s), standard(z_t)
    ce = np.mean([-np.log(softmax(z)[y]) for z, y in zip(z_s, LABELS.tolist(), strict=True) if y >= 0])
    p_s, p_t = softmax(z_s / 4), softmax(z_t / 4)
    kd = 16 * (p_t * (np.log(p_t) - np.log(p_s))).sum(axis=1).mean()
    distance = matched(e, t)
    assert found["ce"].item() == pytest.approx(ce, rel=1e-6)
    assert found["kd"].item() == pytest.approx(kd, rel=1e-6)
    assert found["norm"].item() == pytest.approx(distance, rel=1e-6)
    assert found["loss"].item() == pytest.approx(0.5 * ce + 0.7 * kd + 2 * 0.9 * distance, rel=1e-6)


def test_a_map_with_both_signs_is_standardised_and_a_resnets_is_not():
    e, t = expanded(), maps()[1]
    statistics = info()

    def distance(how: object, **changes: object) -> float:
        config = NormConfig(expansion=TIMES, standardise_map=how)
        loss = Norm(config, FeatureShapes(C, maps=((TIMES * WIDE, 4, 4),)), info(**changes))
        return call(loss, output(e), Targets(map=t))["norm"].item()

    mean, std = float64(statistics.mean, statistics.std)
    std[2] = std.mean()  # it never varied
    by_hand = matched(e.double().numpy(), (t.double().numpy() - mean[:, None, None]) / std[:, None, None])
    plain = matched(*float64(e, t))
    assert distance(True) == pytest.approx(by_hand, rel=1e-6)
    assert distance("auto") == pytest.approx(by_hand, rel=1e-6)
    assert distance("auto", mean=statistics.mean.abs()) == pytest.approx(plain, rel=1e-6)
    assert distance(False, mean=None, std=None) == pytest.approx(plain, rel=1e-6)
    for how in ("auto", True):
        with pytest.raises(TargetsError, match=r"no statistics.*standardise_map=false"):
            distance(how, mean=None)


def test_the_papers_schedule_by_share_of_the_run():
    config = NormConfig()
    for epoch, expected in [(0, 0.1), (4.9, 0.1), (5, 0.5), (14.9, 0.5), (15, 0.9), (60, 0.5), (80, 0.1), (99.9, 0.1)]:
        for epochs in (100, 30):
            context = Context(1, 1, epoch=epoch * epochs / 100, epochs=epochs)
            assert config.matched.factor(context.progress) == expected
    with pytest.raises(ValidationError, match="begins at 0"):
        NormConfig(matching_schedule=((0.1, 1.0),))


def test_logits_can_be_left_as_they_are():
    says = drawn(N, C, seed=6, scale=9)
    found = call(
        make(logit_scale=None, standardise_map=False), output(expanded(), logits=says), Targets(map=maps()[1]), LABELS
    )
    known = LABELS >= 0
    torch.testing.assert_close(found["ce"], torch.nn.functional.cross_entropy(says[known], LABELS[known]))
    assert "kd" not in found


def test_gradient():
    e, t = drawn(2, 6, 2, 2).double().requires_grad_(), drawn(2, 3, 2, 2, seed=1).double()
    assert norm(e, t).shape == (2,)
    assert gradcheck(lambda x: norm(x, t), (e,))


def test_bfloat16_is_near():
    loss = make(kd=0.5)
    e, t, says, told = expanded(8, 32), maps(8, 8, rows=32)[1], drawn(32, C, seed=6) * 9, drawn(32, C, seed=9) * 4
    e, says = e.bfloat16(), says.bfloat16()
    targets = Targets(told.log_softmax(dim=1), dense=True, map=t)
    labels = torch.arange(32) % C
    expected = call(loss, output(e.float(), logits=says.float(), rows=32), targets, labels)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(loss, output(e, logits=says, rows=32), targets, labels)["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_what_it_needs():
    needs = NormConfig().requirements
    assert (needs.labels, needs.map, needs.maps, needs.logits, needs.dense) == (True, True, 1, False, False)
    assert NormConfig(kd=1).requirements.dense
    assert not NormConfig(kd=1, ce=0).requirements.labels
    with pytest.raises(ValidationError, match="nothing trains the classifier"):
        NormConfig(ce=0)


def test_it_can_not_do_without_a_map():
    with pytest.raises(TargetsError, match="--feature-map"):
        Norm.wrap(NormConfig(), timm.create_model("resnet18", num_classes=C, **RESNET), TeacherInfo(C))
    with pytest.raises(TrainingError, match=r"isn't wrapped for this teacher.*56"):
        Norm(NormConfig(), FeatureShapes(C, maps=((16, 4, 4),)), info())


def test_a_wrapped_student_learns_the_map_and_is_unwrapped_again():
    torch.manual_seed(0)
    built = build(ModelConfig(model="resnet18", model_kwargs=RESNET, num_classes=C))
    names = list(built.module.state_dict())
    config, plain = (
        NormConfig(expansion=2),
        TeacherInfo(C, map=(WIDE, 2, 2), mean=torch.zeros(WIDE), std=torch.ones(WIDE)),
    )
    student = Norm.wrap(config, built.module, plain)
    assert isinstance(student, NormStudent)
    hooks = StudentHooks(student, Norm.layers(config))
    images, t = drawn(N, 3, 64, 64, seed=3), drawn(N, WIDE, 2, 2, seed=4)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for step in range(20):
        logits = student(images)
        _, found = hooks.take(images.device)
        sizes = FeatureShapes(C, maps=(tuple(found[0].shape[1:]),))
        loss = Norm(config, sizes, plain)
        parts = call(loss, output(*found, logits=logits), Targets(map=t), LABELS, epoch=step, epochs=20)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append({name: part.item() for name, part in parts.items()})
    assert losses[-1]["norm"] < 0.7 * losses[0]["norm"]
    assert losses[-1]["ce"] < 0.7 * losses[0]["ce"]
    kept = Norm.unwrap(replace(built, module=student.eval()))
    assert list(kept.module.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(kept.module(images), student(images), rtol=1e-5, atol=1e-5)
