"""Over 20,000 draws, views are distributed as those of the libraries whose settings they take."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.transforms import (
    RandomCropOrPad,
    RandomResizedCropAndInterpolation,
    ResizeKeepRatio,
    center_crop_or_pad,
    crop_or_pad,
)
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from kdpipe.views import BlockViews, ViewsConfig
from kdpipe.views.colour import ColourDraws
from kdpipe.views.distributions import BETA_WORDS, beta, normal
from kdpipe.views.draws import DrawStage, uniform, view_streams, words
from kdpipe.views.geometry import Geometry

COUNT = 20_000
LEVEL = 1e-4
_JITTER = ("Brightness", "Contrast", "Color", "Hue")


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    return view_streams(3, "s.tar", [str(i) for i in range(COUNT)], 0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)
    torch.manual_seed(0)


def assert_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Each column of two samples passes for one distribution (Kolmogorov and Smirnov)."""
    for a, b in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        assert stats.ks_2samp(a, b).pvalue > LEVEL


def assert_share(happened: int, prob: float, count: int = COUNT) -> None:
    assert stats.binomtest(happened, count, prob).pvalue > LEVEL


@pytest.mark.parametrize(
    ("height", "width", "limits"),
    [
        (375, 500, {}),
        (32, 32, {}),
        (100, 900, {}),
        (375, 500, {"scale": (0.25, 0.5), "ratio": (0.5, 3.0)}),
    ],
)
def test_crops_are_timms(height, width, limits, streams):
    config = ViewsConfig(**limits)
    geometry = Geometry(config, streams)
    boxes = [geometry.box(i, height, width, 224) for i in range(COUNT)]
    ours = np.array([[b.top, b.left, b.height, b.width, b.height * b.width, b.width / b.height] for b in boxes])
    image = Image.new("L", (width, height))
    drawn = [RandomResizedCropAndInterpolation.get_params(image, config.crop_scale, config.crop_ratio) for _ in boxes]
    assert_alike(ours, np.array([[t, left, h, w, h * w, w / h] for t, left, h, w in drawn]))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (640, 224)])
def test_resizes_that_keep_the_ratio_and_their_places_are_timms(height, width, streams):
    config = ViewsConfig(train_crop_mode="rkrr")
    geometry = Geometry(config, streams)
    boxes = [geometry.box(i, height, width, 224) for i in range(COUNT)]
    ours = np.array([[b.height, b.width, b.height / b.width, b.top, b.left] for b in boxes])
    pixel, theirs = torch.empty(1, 1, 1), []
    for _ in boxes:
        h, w = ResizeKeepRatio.get_params(
            pixel.expand(1, height, width), (224, 224), 0.0, 0.5, config.crop_scale, True, 0.5, config.crop_ratio
        )
        theirs.append([h, w, h / w, *RandomCropOrPad.get_params(pixel.expand(1, h, w), (224, 224))])
    assert_alike(ours, np.array(theirs))
    centred = Geometry(ViewsConfig(train_crop_mode="rkrc"), streams)
    for i in range(100):
        box = centred.box(i, height, width, 224)
        assert (box.height, box.width) == (boxes[i].height, boxes[i].width)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (90, 31), (32, 32)])
@pytest.mark.parametrize("ratio", [(0.9, 1 / 0.9), (0.3, 0.4), (2.5, 4.0)])
def test_resized_images_are_cut_and_reflected_as_timms(height, width, ratio):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for mode in ("rkrc", "rkrr"):
        config = ViewsConfig(train_crop_mode=mode, ratio=ratio, hflip=0.0, interpolation="bilinear")
        for view in range(20):
            block = BlockViews(config, "s.tar", ["k"], view)
            box = block.draws(0, height, width, 32)["box"]
            whole = tv.resize(
                torch.from_numpy(image).permute(2, 0, 1), [box["height"], box["width"]], "bilinear", antialias=True
            )
            # PIL's images, because a tensor can't be reflected further than its own side.
            whole = Image.fromarray(whole.permute(1, 2, 0).numpy())
            if mode == "rkrc":
                expected = center_crop_or_pad(whole, 32, padding_mode="reflect")
            else:
                expected = crop_or_pad(whole, box["top"], box["left"], 32, 32, padding_mode="reflect")
            out = np.empty((32, 32, 3), np.uint8)
            block.render(0, image, out)
            assert np.array_equal(out, np.asarray(expected))


def test_flips_and_interpolations_happen_as_often_as_asked(streams):
    geometry = Geometry(ViewsConfig(hflip=0.3, vflip=0.1, interpolation="random"), streams)
    mirrored, upset = np.transpose([geometry.flips(i) for i in range(COUNT)])
    assert_share(mirrored.sum(), 0.3)
    assert_share(upset.sum(), 0.1)
    assert_share((mirrored & upset).sum(), 0.03)
    assert_share(sum(geometry.interpolation(i) == "bilinear" for i in range(COUNT)), 0.5)


@pytest.mark.parametrize("strengths", [0.4, (0.3, 1.5, 0.2, 0.1), (0.4, 0.0, 0.2)])
def test_jitter_is_torchvisions_in_factors_and_order(strengths, streams):
    colour = ColourDraws(ViewsConfig(color_jitter=strengths), streams)
    jitter = transforms.ColorJitter(*(strengths if isinstance(strengths, tuple) else (strengths,) * 3))
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    names = [n for n, r in zip(_JITTER, ranges, strict=True) if r is not None]
    ours, theirs = [], []
    for i in range(COUNT):
        found = {name: factor for name, factor, _ in colour.operations(i)}
        assert sorted(found) == sorted(names)
        ours.append((tuple(found), [found[n] for n in names]))
        order, *factors = transforms.ColorJitter.get_params(*ranges)
        used = tuple(_JITTER[k] for k in order.tolist() if factors[k] is not None)
        theirs.append((used, [x for x in factors if x is not None]))
    assert_alike(*(np.array([factors for _, factors in side]) for side in (ours, theirs)))
    counts = [Counter(order for order, _ in side) for side in (ours, theirs)]
    table = [[count[order] for order in itertools.permutations(names)] for count in counts]
    assert stats.chi2_contingency(table).pvalue > LEVEL
    assert stats.chisquare(table[0]).pvalue > LEVEL


def test_jitter_greyscale_and_blur_happen_as_often_as_asked_and_independently(streams):
    config = ViewsConfig(color_jitter=0.4, color_jitter_prob=0.8, grayscale_prob=0.2, gaussian_blur_prob=0.5)
    colour = ColourDraws(config, streams)
    found = [{name: argument for name, argument, _ in colour.operations(i)} for i in range(COUNT)]
    for names, prob in (
        (["Brightness"], 0.8),
        (["Grayscale"], 0.2),
        (["Blur"], 0.5),
        (["Brightness", "Grayscale", "Blur"], 0.08),
    ):
        assert_share(sum(all(n in ops for n in names) for ops in found), prob)
    sigmas = [ops["Blur"] for ops in found if "Blur" in ops]
    # The range of torchvision's GaussianBlur, which timm applies.
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > LEVEL


def test_the_normal_distribution_is_normal(streams):
    u = uniform(words(streams, DrawStage.RAND_AUGMENT, 2))
    assert stats.kstest(normal(u[:, 0], u[:, 1]), stats.norm.cdf).pvalue > LEVEL


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 1.5, 8.0])
def test_beta_variates_are_beta(alpha, streams):
    u = uniform(words(streams, DrawStage.MIXING, BETA_WORDS))
    found = beta(np.full(COUNT, alpha), u)
    # In float32, as timm rounds its own: small alphas leave many shares at exactly 1.
    theirs = np.random.default_rng(0).beta(alpha, alpha, COUNT).astype(np.float32)
    assert stats.ks_2samp(found, theirs).pvalue > LEVEL
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
def test_beta_of_extreme_alphas_stays_in_the_unit_interval(alpha, streams):
    found = beta(np.full(1000, alpha), uniform(words(streams[:1000], DrawStage.MIXING, BETA_WORDS)))
    assert ((found >= 0) & (found <= 1)).all()
    assert abs(found.mean() - 0.5) < 0.1
