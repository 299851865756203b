"""Erasing: timm's boxes, and noise in normalised units that is the same for every model and render."""

import random

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing

from kdpipe._util.fingerprint import sha256
from kdpipe.views import BlockViews, Erased, Normalize, ViewsConfig, render_view
from kdpipe.views.draws import view_streams
from kdpipe.views.erasing import ErasingDraws, noise_values

COUNT = 20_000
LEVEL = 1e-4
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    return view_streams(9, "s.tar", [str(i) for i in range(COUNT)], 0)


def rendered(mode: str, count: int = 12, size: int = 48, **settings) -> tuple[np.ndarray, np.ndarray, Erased]:
    """Views of `count` samples before and after erasing, and where they were erased."""
    config = ViewsConfig(seed=6, re_prob=1.0, re_mode=mode, **{"re_count": 3} | settings)
    block = BlockViews(config, "s.tar", [str(i) for i in range(count)], 0)
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    whole = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        block.render(i, image, whole[i])
    erased = whole.copy()
    boxes = [block.erase(i, erased[i]) for i in range(count)]
    found = Erased.of(config, boxes)
    assert found is not None
    return whole, erased, found


def places(erased: Erased) -> list[tuple[int, slice, slice]]:
    return [
        (row, slice(top, top + h), slice(left, left + w))
        for row, boxes in enumerate(erased.boxes.tolist())
        for top, left, h, w in boxes
        if h
    ]


def outside(erased: Erased, size: int) -> np.ndarray:
    mask = np.ones((len(erased), size, size), bool)
    for place in places(erased):
        mask[place] = False
    return mask


@pytest.mark.parametrize(
    "settings",
    [
        {"re_prob": 0.25},
        {"re_prob": 0.6, "re_count": 3},
        {"re_prob": 1.0, "re_area": (0.3, 0.9), "re_aspect": (0.5, 4.0)},
    ],
)
def test_boxes_are_timms(settings, streams):
    config = ViewsConfig(**settings)
    drawn = ErasingDraws(config, streams)
    ours = [[box for box in drawn.boxes(i, 224).tolist() if box[2]] for i in range(COUNT)]
    random.seed(0)
    area, aspect = config.re_area, config.re_aspect
    timms = RandomErasing(config.re_prob, *area, *aspect, "const", 1, config.re_count, device="cpu")
    theirs, boxes = [], []

    class Recorder:
        def __setitem__(self, place, _):
            boxes.append([place[1].start, place[2].start, *(p.stop - p.start for p in place[1:])])

    for _ in range(COUNT):
        boxes.clear()
        timms._erase(Recorder(), 3, 224, 224, torch.float32)
        theirs.append(list(boxes))
    counts = [np.bincount([len(b) for b in side], minlength=config.re_count + 1) for side in (ours, theirs)]
    assert stats.chi2_contingency(np.array(counts)[:, np.sum(counts, axis=0) > 0]).pvalue > LEVEL
    for count in range(1, config.re_count + 1):
        # The area of a box is a share of the drawn number of boxes, so each number is compared by itself.
        a, b = (np.array([box for found in side if len(found) == count for box in found]) for side in (ours, theirs))
        for column in range(4):
            assert stats.ks_2samp(a[:, column], b[:, column]).pvalue > LEVEL
        assert stats.ks_2samp(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]).pvalue > LEVEL
        assert stats.ks_2samp(a[:, 2] / a[:, 3], b[:, 2] / b[:, 3]).pvalue > LEVEL


def test_noise_is_pinned_and_standard_normal():
    values = noise_values()
    assert sha256(values.tobytes())[:16] == "d9c3f5aa97ac35f6"
    assert values[[0, 127, 128, 255]].tolist() == [
        -2.8929011821746826,
        -0.0049081058241426945,
        0.0049081058241426945,
        2.8929011821746826,
    ]
    assert abs(values.mean(dtype=np.float64)) < 1e-7
    assert abs(values.var(dtype=np.float64) - 1) < 1e-6
    assert (np.diff(values) > 0).all()


def test_pixels_of_noise_are_drawn_from_the_standard_normal_distribution():
    _, images, erased = rendered("pixel", size=96)
    x = Normalize(*IMAGENET)(torch.from_numpy(images), erased).permute(0, 2, 3, 1).numpy()
    drawn = x[~outside(erased, 96)]
    assert len(drawn) * 3 > COUNT
    assert stats.kstest(drawn.ravel()[:COUNT], stats.norm.cdf).pvalue > LEVEL
    # Neighbours and channels know nothing of each other: 5 standard errors.
    for a, b in ((drawn[:, 0], drawn[:, 1]), (drawn[1:, 0], drawn[:-1, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5


def test_colours_of_rand_are_drawn_from_the_standard_normal_distribution(streams):
    drawn = ErasingDraws(ViewsConfig(re_prob=1.0, re_mode="rand"), streams[:7000])
    colours = []
    for i in range(7000):
        image = np.empty((16, 16, 3), np.uint8)
        top, left, h, w = drawn.erase(i, image)[0].tolist()
        if h and w:
            colours += image[top, left].tolist()
    assert len(colours) > COUNT
    assert stats.kstest(noise_values()[colours[:COUNT]], stats.norm.cdf).pvalue > LEVEL


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_only_the_boxes_change_and_the_rest_is_the_unerased_view(mode):
    whole, images, erased = rendered(mode)
    mask = outside(erased, 48)
    assert 0 < (~mask).mean() < 0.7
    assert np.array_equal(images[mask], whole[mask])
    normalize = Normalize(*IMAGENET)
    x, plain = (
        normalize(torch.from_numpy(b), e).permute(0, 2, 3, 1).numpy() for b, e in ((images, erased), (whole, None))
    )
    assert np.array_equal(x[mask], plain[mask])


def test_const_is_the_mean_colour():
    _, images, erased = rendered("const")
    x = Normalize(*IMAGENET)(torch.from_numpy(images), erased).permute(0, 2, 3, 1).numpy()
    assert (x[~outside(erased, 48)] == 0).all()


def test_rand_is_one_colour_a_box_and_pixel_one_a_pixel():
    values = noise_values()
    for mode in ("rand", "pixel"):
        _, images, erased = rendered(mode, re_count=1)
        x = Normalize(*IMAGENET)(torch.from_numpy(images), erased).permute(0, 2, 3, 1).numpy()
        colours = []
        for place in places(erased):
            box = x[place].reshape(-1, 3)
            assert np.array_equal(x[place], values[images[place]])
            different = len(np.unique(box, axis=0))
            assert different == 1 if mode == "rand" else different > 0.95 * len(box)
            colours.append(tuple(box[0]))
        assert len(set(colours)) == len(colours) > 8


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_every_model_sees_the_same_noise(mode):
    _, images, erased = rendered(mode)
    inside = ~outside(erased, 48)
    seen = [
        Normalize(*units, channels_last)(torch.from_numpy(images), erased).permute(0, 2, 3, 1).numpy()[inside]
        for units, channels_last in ((IMAGENET, True), (HALF, False))
    ]
    assert np.array_equal(*seen)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_a_batch_is_erasing_its_rows_in_any_order(mode):
    _, images, erased = rendered(mode)
    normalize, order = Normalize(*IMAGENET), [7, 0, 3]
    some = normalize(torch.from_numpy(images[order]), erased[order])
    assert torch.equal(some, normalize(torch.from_numpy(images), erased)[order])
    assert len(erased[order]) == 3


def test_boxes_at_two_render_sizes_share_their_fractions(streams):
    drawn = ErasingDraws(ViewsConfig(re_prob=0.9, re_count=3), streams[:500])
    for i in range(500):
        small, large = drawn.boxes(i, 224), drawn.boxes(i, 384)
        assert np.abs(small / 224 - large / 384).max() < 1.5 / 224


def test_a_view_erases_alike_whoever_asks():
    config = ViewsConfig(re_prob=0.8, re_mode="pixel", re_count=2)
    image = np.zeros((40, 40, 3), np.uint8)
    block = BlockViews(config, "s.tar", ["a", "b", "c"], 2)
    for i, key in enumerate("abc"):
        out = np.empty((32, 32, 3), np.uint8)
        block.render(i, image, out)
        block.erase(i, out)
        assert np.array_equal(out, render_view(config, "s.tar", key, 2, image, 32))


def test_tiny_views_are_erased_or_left_alone():
    for mode, size in (("pixel", 1), ("rand", 2), ("const", 5)):
        _, images, erased = rendered(mode, size=size)
        Normalize(*IMAGENET)(torch.from_numpy(images), erased)


def test_nothing_is_erased_where_the_policy_or_the_view_says_so():
    image = np.zeros((40, 40, 3), np.uint8)
    block = BlockViews(ViewsConfig(re_prob=0.0), "s.tar", ["a"], 0)
    assert block.erase(0, image) is None
    center = BlockViews(ViewsConfig(re_prob=1.0), "s.tar", ["a"], "center")
    assert Erased.of(ViewsConfig(re_prob=1.0), [center.erase(0, image)]) is None
    assert not image.any()
