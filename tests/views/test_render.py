"""Pixels: exactly the library function's, close to PIL's, and the same whatever surrounds the call."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.v2 import functional as tv

from kdpipe.errors import ViewError
from kdpipe.views import BlockViews, Normalize, ViewsConfig, render_view
from kdpipe.views.canaries import Canary, compare


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour fields with some grain: what resizing and JPEG meet in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (40, 33), (1, 1), (700, 20)])
def test_a_view_is_torchvisions_resized_crop_and_flip(interpolation, height, width):
    image = photo(height, width)
    config = ViewsConfig(seed=5, interpolation=interpolation)
    for view in range(6):
        drawn = BlockViews(config, "s.tar", ["k"], view).draws(0, height, width, 64)
        crop = drawn["box"]
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        expected = tv.resized_crop(
            tensor, *(crop[n] for n in ("top", "left", "height", "width")), [64, 64], interpolation, antialias=True
        )
        if drawn["hflip"]:
            expected = tv.horizontal_flip(expected)
        got = render_view(config, "s.tar", "k", view, image, 64)
        assert np.array_equal(got, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (64, 64), (33, 90)])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_center_view_is_timms_evaluation_transform(height, width, crop_pct):
    image = photo(height, width)
    config = ViewsConfig(interpolation="bilinear", crop_pct=crop_pct)
    got = render_view(config, "s.tar", "k", "center", image, 64)
    transform = create_transform(64, interpolation="bilinear", crop_pct=crop_pct, mean=(0, 0, 0), std=(1, 1, 1))
    theirs = (transform(Image.fromarray(image)) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(theirs - got).max() <= 2
    assert np.abs(theirs - got).mean() < 0.2


def test_geometry_does_not_depend_on_the_render_size():
    image, config = photo(300, 400), ViewsConfig(seed=2, interpolation="bilinear")
    large = render_view(config, "s.tar", "k", 1, image, 128).astype(float)
    small = render_view(config, "s.tar", "k", 1, image, 32).astype(float)
    pooled = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(pooled - small).mean() < 4


def test_pixels_are_pinned():
    got = render_view(ViewsConfig(seed=7), "train-0000.tar", "cat", 3, photo(375, 500, seed=1), 48)
    assert hashlib.sha256(got).hexdigest()[:16] == "2b11ac5f998abe47"


def test_threads_and_neighbours_do_not_matter():
    images = [photo(60 + i, 80, seed=i) for i in range(12)]
    config = ViewsConfig(seed=9)
    keys = [str(i) for i in range(12)]
    alone = [render_view(config, "s.tar", k, 0, im, 224) for k, im in zip(keys, images, strict=True)]
    together = np.empty((12, 224, 224, 3), np.uint8)
    block = BlockViews(config, "s.tar", keys, 0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: block.render(i, images[i], together[i]), range(12)))
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalize_is_timms(channels_last):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.from_numpy(np.stack([photo(16, 16, seed=i) for i in range(2)]))
    got = Normalize(mean, std, channels_last)(images)
    transform = create_transform(16, interpolation="bilinear", crop_pct=1.0, mean=mean, std=std)
    expected = torch.stack([transform(Image.fromarray(im.numpy())) for im in images])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)


def test_canaries_report_how_far_and_where():
    pixels = photo(8, 8)
    other = pixels.copy()
    other[2, 5, 1] ^= 1
    canary = Canary("s.tar", "k", 3, pixels)
    assert compare([canary], [pixels], 0) == {"views": 1, "changed": 0, "pixels": 0.0, "levels": 0}
    with pytest.raises(ViewError, match=r"s.tar:k view 3 at row 2, column 5, channel 1: .* found 1 levels; allowed: 0"):
        compare([canary], [other], 0)
    assert compare([canary], [other], 1)["levels"] == 1
    other[0, 0, 0] ^= 8
    with pytest.raises(ViewError, match="allowed: 1"):
        compare([canary], [other], 1)
    with pytest.raises(ViewError, match="another size"):
        compare([canary], [pixels[:4]], 0)


@pytest.mark.parametrize(
    "setting", [{"scale": (0.5, 0.1)}, {"ratio": (0, 1)}, {"hflip": 2}, {"zoom": 1}, {"crop_pct": 0}]
)
def test_impossible_policies_are_refused(setting):
    with pytest.raises(ValueError, match="validation error"):
        ViewsConfig(**setting)
