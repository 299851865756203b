"""Dual-view feature mimicking against NumPy in float64, and against the cosine transform of the paper."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.autograd import gradcheck

from kdpipe.losses.dfm import frequency, spatial

B, D, H, W = 3, 5, 4, 6


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(B, D, H, W, generator=generator) * 2 + 1 for _ in range(2))
    return student, teacher


def spatial_by_hand(student: np.ndarray, teacher: np.ndarray) -> list[float]:
    rows = []
    for s, t in zip(student, teacher, strict=True):
        total = 0.0
        for y in range(s.shape[1]):
            for x in range(s.shape[2]):
                a, b = s[:, y, x], t[:, y, x]
                total += float(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum())
        rows.append(total)
    return rows


def without_dc(x: np.ndarray) -> np.ndarray:
    """The paper's view: forward cosine transform of each channel, its first coefficient zeroed, and back."""
    z = dctn(x, axes=(2, 3), norm="ortho")
    z[:, :, 0, 0] = 0
    return idctn(z, axes=(2, 3), norm="ortho")


def test_spatial_is_its_equation():
    student, teacher = maps()
    expected = spatial_by_hand(student.double().numpy(), teacher.double().numpy())
    assert spatial(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)


def test_frequency_is_the_papers_transform():
    student, teacher = maps()
    expected = spatial_by_hand(*(without_dc(x.double().numpy()) for x in (student, teacher)))
    assert frequency(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)
    exact = frequency(student.double(), teacher.double()).tolist()
    assert exact == pytest.approx(expected, rel=1e-12)


def test_what_they_forget():
    student, teacher = maps()
    # Length of tokens; and a constant of each channel, but not length.
    length = torch.rand(B, 1, H, W) + 0.5
    torch.testing.assert_close(spatial(student, teacher * length), spatial(student, teacher))
    shift = torch.randn(B, D, 1, 1)
    torch.testing.assert_close(frequency(student, teacher + shift), frequency(student, teacher))
    assert not torch.allclose(frequency(student, teacher * length), frequency(student, teacher), rtol=1e-3)
    assert spatial(teacher, teacher).tolist() == [0.0] * B
    torch.testing.assert_close(spatial(-teacher, teacher), torch.full((B,), 4.0 * H * W))


def test_a_map_of_one_position_has_no_frequencies():
    student, teacher = (x[:, :, :1, :1].clone().requires_grad_() for x in maps())
    loss = frequency(student, teacher).sum()
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("function", [spatial, frequency])
def test_gradients(function):
    student, teacher = (x[:2, :3, :2, :2].double() for x in maps())
    assert gradcheck(function, (student.requires_grad_(), teacher))


@pytest.mark.parametrize("function", [spatial, frequency])
def test_half_precision_costs_little(function):
    student, teacher = maps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(student.bfloat16(), teacher)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(), function(student, teacher).sum(), rtol=1e-3, atol=0)
