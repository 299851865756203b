"""Receptive fields against what is known by hand, and squares against closed forms."""

import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

import kdpipe.models.build  # noqa: F401  (registers the networks)
from kdpipe.erf import SHARES, ReceptiveField, Square, log_scale, squares
from kdpipe.errors import TeacherError

SIDE = 31


class Net(nn.Module):
    """Layers whose output is the final map, called as timm's models are."""

    def __init__(self, *layers: nn.Module, change=lambda found: found) -> None:
        super().__init__()
        self.layers, self.change = nn.Sequential(*layers), change

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.layers(x))


def depthwise(side: int, value: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(3, 3, side, padding=side // 2, groups=3, bias=False)
    nn.init.constant_(conv.weight, value)
    return conv


def images(n: int = 1, side: int = SIDE, seed: int = 0) -> list[torch.Tensor]:
    """Positive ones, so that what is linear with positive weights is positive."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(n, 1, 3, side, side, generator=generator) + 0.1)


def field(model: nn.Module, pictures: list[torch.Tensor]) -> ReceptiveField:
    found = ReceptiveField(model, "net")
    for picture in pictures:
        found.add(picture)
    return found


def placed(kernel: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A small map in the middle of nothing."""
    out, first = np.zeros((side, side)), side // 2 - len(kernel) // 2
    out[first : first + len(kernel), first : first + len(kernel)] = kernel
    return out


class TestGradient:
    def test_one_kernel_of_ones(self):
        heat = field(Net(depthwise(7)), images(2)).heat()
        # Each of the three colours reaches its own channel.
        np.testing.assert_array_equal(heat, placed(np.full((7, 7), 3.0)))
        # Of 49 pixels 1 x 1 holds 2 %, 3 x 3 18 %, 5 x 5 51 %.
        assert [s.side for s in squares(heat)] == [5, 5, 5, 7]
        assert squares(heat)[-1].area == (7 / SIDE) ** 2
        # Equal pixels stay equal on any scale.
        assert squares(log_scale(heat)) == squares(heat)

    def test_two_small_kernels(self):
        heat = field(Net(depthwise(3), depthwise(3)), images()).heat()
        row = np.array([1, 2, 3, 2, 1])
        np.testing.assert_allclose(heat, placed(3.0 * np.outer(row, row)))
        # Of 81 the inner 1 x 1 holds 9 and 3 x 3 49: 11 % and 60 %.
        assert squares(heat, [0.1, *SHARES]) == [Square(s, (s / SIDE) ** 2) for s in (1, 3, 3, 3, 5)]

    def test_a_stride_moves_the_centre_to_the_middle_cell(self):
        conv = nn.Conv2d(3, 4, 8, stride=8, bias=False)
        nn.init.ones_(conv.weight)
        heat = field(Net(conv), images(side=32)).heat()
        expected = np.zeros((32, 32))
        expected[16:24, 16:24] = 3 * 4
        np.testing.assert_array_equal(heat, expected)

    def test_of_a_linear_model_it_does_not_depend_on_the_image(self):
        torch.manual_seed(1)
        model = Net(nn.Conv2d(3, 5, 9, padding=4, bias=False), nn.Conv2d(5, 2, 3, padding=1, bias=False))
        for parameter in model.parameters():
            nn.init.uniform_(parameter)
        one, other, mean = (field(model, p).heat() for p in (images(), images(seed=5), images(7, seed=9)))
        np.testing.assert_allclose(one, other, rtol=1e-6)
        np.testing.assert_allclose(one, mean, rtol=1e-6)

    def test_it_is_the_mean_over_images(self):
        model, pictures = Net(nn.Conv2d(3, 6, 5, padding=2), nn.GELU(), depthwise6()), images(3)
        each = [field(model, [picture]).heat() for picture in pictures]
        np.testing.assert_allclose(field(model, pictures).heat(), np.mean(each, axis=0))

    def test_negative_channels_and_negative_gradients_do_not_count(self):
        conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        nn.init.constant_(conv.weight, 1.0)
        with torch.no_grad():
            conv.weight[1] = -1  # this channel is negative wherever the image is positive
            conv.weight[0, :, 0, 0] = -0.1  # and this tap pulls the other one down
        kernel = np.full((3, 3), 3.0)
        kernel[0, 0] = 0
        np.testing.assert_array_equal(field(Net(conv), images()).heat(), placed(kernel))

    def test_images_without_a_finite_gradient_are_left_out(self):
        # The root's slope at 0 is infinite.
        model, good, bad = Net(change=torch.sqrt), *images(), torch.zeros(1, 3, SIDE, SIDE)
        found = field(model, [bad, good, bad])
        assert (found.images, found.skipped) == (1, 2)
        np.testing.assert_array_equal(found.heat(), field(model, [good]).heat())
        with pytest.raises(TeacherError, match=r"^net: no gradient is finite; found 1 images skipped"):
            field(model, [bad]).heat()

    @pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_mambaout", "slak_nano"])
    def test_networks_of_timm(self, name):
        torch.manual_seed(2)
        made = timm.create_model(name)
        pictures = images(2, side=96)
        heat = field(made, pictures).heat()
        assert heat.shape == (96, 96)
        assert np.array_equal(heat, field(made, pictures).heat())
        # Around the middle cell, and half a stride to each side of the middle.
        assert heat[16:80, 16:80].sum() > 0.5 * heat.sum()

    def test_maps_with_channels_last_are_the_same_maps(self):
        made, last = (Net(depthwise(5), nn.Conv2d(3, 6, 5, stride=2)) for _ in range(2))
        last.load_state_dict(made.state_dict())
        last.output_fmt, last.change = "NHWC", lambda x: x.permute(0, 2, 3, 1)
        np.testing.assert_array_equal(field(last, images()).heat(), field(made, images()).heat())


def depthwise6() -> nn.Conv2d:
    return nn.Conv2d(6, 6, 5, padding=2, groups=6)


class TestRefusals:
    def test_no_features(self):
        with pytest.raises(TeacherError, match=r"^net: the model has no forward_features"):
            ReceptiveField(nn.Conv2d(3, 1, 1), "net")

    @pytest.mark.parametrize(
        ("change", "found"),
        [(lambda x: x.flatten(2), r"\(1, 3, 961\)"), (lambda x: [x], "list"), (lambda x: x.mean((2, 3)), r"\(1, 3\)")],
    )
    def test_no_map(self, change, found):
        with pytest.raises(TeacherError, match=rf"^net: forward_features gives no map; found {found}; allowed: "):
            field(Net(change=change), images())

    def test_a_size_at_which_it_can_not_run(self):
        with pytest.raises(TeacherError, match=r"^net: the model's gradient can't .* an image of 5 pixels") as caught:
            field(Net(nn.Conv2d(3, 1, 7)), images(side=5))
        assert "\n" not in str(caught.value)

    def test_a_dead_centre(self):
        with pytest.raises(TeacherError, match="all gradients are zero; found 2 images"):
            field(Net(depthwise(3, -1.0)), images(2)).heat()


class TestSquares:
    @pytest.mark.parametrize("sigma", [3.0, 20.0, 47.5])
    def test_of_a_gaussian(self, sigma, size=1023):
        edges = (np.arange(size + 1) - size / 2) / (sigma * math.sqrt(2))
        row = np.diff([math.erf(e) for e in edges])
        for share, found in zip(SHARES, squares(np.outer(row, row)), strict=True):
            # A square of half side a holds erf(a / (sigma sqrt 2))^2.
            held = [math.erf(side / 2 / (sigma * math.sqrt(2))) ** 2 for side in (found.side - 2, found.side)]
            assert held[0] <= share < held[1]
            assert found.area == (found.side / size) ** 2

    @pytest.mark.parametrize("size", [64, 65])
    def test_of_an_even_field(self, size):
        found = squares(np.ones((size, size)))
        # The first odd side whose area is more than the share, around pixel size // 2.
        sides = [next(s for s in range(1, size + 2, 2) if (s / size) ** 2 > share) for share in SHARES[:3]]
        assert [s.side for s in found[:3]] == sides
        assert found[3] == Square(size, 1.0)

    def test_all_in_a_corner_takes_the_whole_image(self):
        for size in (8, 9):
            heat = np.zeros((size, size))
            heat[0, 0] = 1e-300
            assert {s.side for s in squares(heat)} == {size}

    def test_a_share_that_is_just_reached_is_not_exceeded(self):
        heat = placed(np.ones((3, 3)), 5)
        heat[2, 2] = 8.0
        assert [s.side for s in squares(heat, [0.49, 0.5, 0.51])] == [1, 3, 3]

    def test_the_scale(self):
        np.testing.assert_allclose(log_scale(np.array([[0.0, 9.0], [99.0, 999.0]])), [[0, 1 / 3], [2 / 3, 1]])
        # Gradients of any size: where they are small the scale is the gradient's own.
        heat = placed(np.arange(9.0).reshape(3, 3))
        np.testing.assert_allclose(log_scale(heat * 1e-20), heat / 8, rtol=1e-12)
