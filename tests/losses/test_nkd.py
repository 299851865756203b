"""NKD against its equation in float64, and what becomes of a label outside the top k."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.config import NkdConfig
from kdpipe.losses.nkd import Nkd, nkd
from kdpipe.losses.target_class import with_label
from kdpipe.targets import Labels, Targets, mix_targets
from tests.losses.logits import (
    C,
    N,
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


def make(**config) -> Nkd:
    return Nkd(NkdConfig(**config))


def by_hand(student, teacher, labels, temperature) -> tuple[float, float]:
    """Both brackets, row by row, the others' softmax over a list without the label."""
    target, others = [], []
    for s, t, y in zip(*float64(student, teacher, labels), strict=True):
        if y >= 0:
            target.append(-softmax(t)[y] * np.log(softmax(s)[y]))
            hats = [softmax(np.delete(z, y) / temperature) for z in (t, s)]
            others.append(-(temperature**2) * np.sum(hats[0] * np.log(hats[1])))
    return np.mean(target), np.mean(others)


@pytest.mark.parametrize(
    ("config", "gamma", "temperature", "ce"),
    [
        ({}, 1.5, 1, True),
        ({"form": "large-kernel"}, 1, 1, False),
        ({"gamma": 0.7, "temperature": 2.5}, 0.7, 2.5, True),
        ({"form": "large-kernel", "gamma": 2, "ce": True}, 2, 1, True),
    ],
)
def test_equation(config, gamma, temperature, ce):
    student, teacher, labels = rows()
    found = call(make(**config), student, labels, live(teacher))
    target, others = by_hand(student, teacher, labels, temperature)
    assert found["nkd_target"].item() == pytest.approx(target, rel=1e-6)
    assert found["nkd_others"].item() == pytest.approx(others, rel=1e-6)
    known = mean_ce(*float64(student, labels))
    assert found["loss"].item() == pytest.approx(target + gamma * others + ce * known, rel=1e-6)
    assert ("ce" in found) == ce
    if ce:
        assert found["ce"].item() == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient(temperature):
    student, teacher, labels = rows()
    student = student.double().requires_grad_()
    assert gradcheck(lambda s: nkd(s, teacher.double(), labels, 1.5, temperature), (student,))


def test_float32_inside_autocast():
    check_float32_inside_autocast(make(temperature=2.0))


def test_mixed_rows_take_the_larger_label_and_both_for_ce():
    student, teacher, labels = rows()
    labels[4] = 2
    pairs, lam = torch.stack([labels, labels.flip(0)], dim=1), torch.full((N,), 0.3)
    found = call(make(), student, Labels(labels.flip(0), pairs, lam), live(teacher))
    target, others = by_hand(student, teacher, labels.flip(0), 1)
    assert found["nkd_target"].item() == pytest.approx(target, rel=1e-6)
    assert found["nkd_others"].item() == pytest.approx(others, rel=1e-6)
    ce = 0.3 * mean_ce(*float64(student, labels)) + 0.7 * mean_ce(*float64(student, labels.flip(0)))
    assert found["ce"].item() == pytest.approx(ce, rel=1e-6)


def test_a_row_without_a_label_adds_nothing_and_gets_no_gradient():
    check_a_row_without_a_label(make())
    student, teacher, labels = rows()
    ours = student.clone().requires_grad_()
    nothing = call(make(), ours, torch.full_like(labels, -1), live(teacher))
    nothing["loss"].backward()
    assert nothing["loss"].item() == 0
    assert torch.isfinite(ours.grad).all()


@pytest.mark.parametrize("k", [1, 3, C - 1])
def test_a_label_outside_the_top_k_keeps_its_own_probability(k):
    _, teacher, labels = rows()
    targets = top(teacher, labels, k)
    found = with_label(targets, labels).double().exp()
    p = softmax(teacher.double().numpy())
    outside = 0
    for row, y in enumerate(labels.tolist()):
        kept = set(np.argsort(-p[row])[:k].tolist())
        outside += y >= 0 and y not in kept
        own = kept | ({y} if y >= 0 else set())
        spread = (1 - sum(p[row, c] for c in own)) / max(1, C - len(own))
        expected = [p[row, c] if c in own else spread for c in range(C)]
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-5, atol=5e-7)
    assert outside >= (1 if k < C - 1 else 0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-6)


def test_of_several_top_k_sets_the_label_keeps_its_own_and_the_others_share_the_rest():
    _, teacher, labels = rows()
    one = top(teacher, labels, 3)
    joint = Targets(one.log_probs, one.label_log_prob, False)
    found, before = with_label(joint, labels).double().exp(), one.log_probs.double().exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-6)
    for row, y in enumerate(labels.tolist()):
        if y < 0:
            assert torch.equal(found[row], before[row])
            continue
        assert found[row, y].item() == pytest.approx(one.label_log_prob[row].exp().item(), rel=1e-6)
        ratio = found[row] / before[row]
        others = torch.arange(C) != y
        torch.testing.assert_close(ratio[others], ratio[others][:1].expand(C - 1), rtol=1e-5, atol=0)
    lam = torch.full((N,), 0.6)
    mixed = mix_targets(one, top(teacher.flip(0), labels, 3), lam, labels)
    assert torch.equal(with_label(mixed, labels), mixed.log_probs)


def test_the_target_term_of_top_k_is_exact():
    student, teacher, labels = rows()
    exact = call(make(), student, labels, live(teacher))
    for k in (1, 4, C - 1, C):
        found = call(make(), student, labels, top(teacher, labels, k))
        torch.testing.assert_close(found["nkd_target"], exact["nkd_target"], rtol=1e-6, atol=1e-7)
    # All classes but the label itself, or but the least likely one: nothing is left to guess.
    torch.testing.assert_close(found["loss"], exact["loss"])


def test_where_nothing_is_left_for_the_tail_the_loss_is_finite():
    student, _, _ = rows()
    teacher = torch.full((N, C), -40.0)
    teacher[:, 0] = 40
    labels = torch.full((N,), 5)
    found = call(make(), student.requires_grad_(), labels, top(teacher, labels, 2))
    found["loss"].backward()
    assert torch.isfinite(student.grad).all()
    assert found["nkd_target"].item() == pytest.approx(0, abs=1e-12)


def test_topk_targets_serve_temperature_one_only():
    student, teacher, labels = rows()
    assert not make().requirements.dense
    with pytest.raises(TargetsError, match=r"nkd: .*every class.*--targets dense.*--pooled float16"):
        call(make(temperature=2.0), student, labels, top(teacher, labels, 4))
    with pytest.raises(TargetsError, match=r"nkd: .*Pass --cache"):
        call(make(), student, labels, None)


@pytest.mark.parametrize(("config", "message"), [({"form": "ours"}, "large-kernel"), ({"gamma": -1}, "greater than")])
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        NkdConfig(**config)


def test_a_config_survives_being_written_down():
    config = NkdConfig(form="large-kernel", temperature=1.0)
    assert (config.gamma, config.ce) == (1.0, False)
    assert NkdConfig(**config.model_dump()) == config
