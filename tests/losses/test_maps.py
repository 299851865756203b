"""FD, FitNets and MGD: maps compared position by position, against their equations in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdpipe.errors import TargetsError
from kdpipe.losses.align import same_grid
from kdpipe.losses.config import FdConfig, FitNetsConfig, MgdConfig
from kdpipe.losses.fd import FeatureDistillation, fd
from kdpipe.losses.fitnets import FitNets, squared_error
from kdpipe.losses.inputs import FeatureShapes, TeacherInfo
from kdpipe.losses.mgd import MaskedGenerative, channel_mask, mgd
from kdpipe.targets import Targets
from tests.losses.features import (
    NARROW,
    WIDE,
    N,
    average_by,
    call,
    conv1x1,
    drawn,
    float64,
    in_two_parts,
    maps,
    output,
)

ALL = {
    "fd": (FeatureDistillation, FdConfig()),
    "fd whitened": (FeatureDistillation, FdConfig(form="whitened")),
    "fitnets": (FitNets, FitNetsConfig()),
    "mgd": (MaskedGenerative, MgdConfig(mask=0)),
}


TEACHER = TeacherInfo(5, map=(WIDE, 4, 4))


def make(name: str, student: int = 4, teacher: int = 4):
    loss, config = ALL[name]
    torch.manual_seed(0)
    sizes = FeatureShapes(5, maps=((NARROW, student, student),))
    return loss(config, sizes, TeacherInfo(5, map=(WIDE, teacher, teacher)))


def smooth_l1(difference: np.ndarray, beta: float) -> np.ndarray:
    far = np.abs(difference)
    return np.where(far < beta, 0.5 * far**2 / beta, far - beta / 2)


def whitened(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)


def conv3x3(conv: torch.nn.Conv2d, x: np.ndarray) -> np.ndarray:
    weight, bias = float64(conv.weight, conv.bias)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(x), len(weight), *x.shape[2:])) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            part = padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
            out += np.einsum("dc,nchw->ndhw", weight[:, :, i, j], part)
    return out


# Equal grids, and the student's or the teacher's twice as fine.
@pytest.mark.parametrize(("fine", "coarse"), [(4, 4), (8, 4), (4, 8)])
@pytest.mark.parametrize("name", list(ALL))
def test_equation(name, fine, coarse):
    loss = make(name, fine, coarse)
    student, teacher = maps(fine, coarse)
    found = call(loss, output(student), Targets(map=teacher))
    s, t = conv1x1(loss.align, student), teacher.double().numpy()
    s = average_by(s, s.shape[2] // 4)
    t = average_by(t, t.shape[2] // 4)
    if name.startswith("fd"):
        expected = smooth_l1(s - (whitened(t) if name == "fd whitened" else t), 2.0).mean()
    elif name == "fitnets":
        expected = ((s - t) ** 2).mean()
    else:
        first, _, second = loss.generate
        generated = conv3x3(second, np.maximum(conv3x3(first, s), 0))
        expected = ((generated - t) ** 2).sum() / N
    assert found["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert found["loss"] is found[loss.name]


@pytest.mark.parametrize("name", list(ALL))
def test_everything_gets_a_gradient_and_no_dealing_of_rows_changes_the_loss(name):
    loss = make(name)
    student, teacher = maps()
    student.requires_grad_()
    whole = call(loss, output(student), Targets(map=teacher))["loss"]
    whole.backward()
    assert student.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    for cut in (2, 0, N):
        parts = in_two_parts(loss, output(student), Targets(map=teacher), cut)
        torch.testing.assert_close(parts["loss"], whole)


@pytest.mark.parametrize("name", list(ALL))
def test_bfloat16_is_near(name):
    loss = make(name)
    student, teacher = maps(8, 8, rows=32)
    expected = call(loss, output(student, rows=32), Targets(map=teacher))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(loss, output(student, rows=32), Targets(map=teacher))["loss"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_gradients():
    student, teacher = (drawn(3, 5, 2, 2, seed=seed).double() * 2 for seed in (1, 2))
    student.requires_grad_()
    for loss in (fd, lambda s, t: fd(s, t, whitened=True), squared_error, mgd):
        assert loss(student, teacher).shape == (3,)
        assert gradcheck(lambda s, f=loss: f(s, teacher), (student,))


def test_whole_channels_are_masked_and_others_stay_as_they_are():
    x = drawn(64, 50, 3, 3).abs() + 1
    torch.manual_seed(0)
    masked = x * channel_mask(x, 0.15)
    gone = (masked == 0).flatten(2)
    assert torch.equal(gone.all(dim=2), gone.any(dim=2))
    assert gone.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert torch.equal(masked[masked != 0], x[masked != 0])


def test_the_mask_is_drawn_anew_and_by_torchs_seed():
    loss = MaskedGenerative(MgdConfig(mask=0.5), FeatureShapes(5, maps=((NARROW, 4, 4),)), TEACHER)
    student, teacher = maps()

    def drawn_after(seed: int) -> float:
        torch.manual_seed(seed)
        return call(loss, output(student), Targets(map=teacher))["loss"].item()

    assert drawn_after(1) == drawn_after(1) != drawn_after(2)


def test_mgd_of_equal_widths_needs_no_alignment():
    assert not list(MaskedGenerative(MgdConfig(), FeatureShapes(5, maps=((WIDE, 4, 4),)), TEACHER).align.parameters())


def test_grids_need_not_be_multiples():
    student, teacher = drawn(2, 3, 7, 5), drawn(2, 3, 5, 7)
    for pool in ("avg", "max"):
        assert [x.shape[2:] for x in same_grid(student, teacher, pool)] == [(5, 5), (5, 5)]
    assert same_grid(student, student)[0] is student


@pytest.mark.parametrize("name", list(ALL))
def test_a_cache_without_maps_is_refused(name):
    loss, config = ALL[name]
    with pytest.raises(TargetsError, match=r"map feature.*--feature-map"):
        loss(config, FeatureShapes(5, maps=((NARROW, 4, 4),)), TeacherInfo(5))
    with pytest.raises(TargetsError, match="map feature"):
        call(make(name), output(maps()[0]), Targets(log_probs=torch.zeros(N, 5)))
    assert not config.trains_classifier
    assert config.requirements.map
