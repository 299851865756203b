"""Draws are for ever: published vectors, golden values, and the distributions of the library we stand in for."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from pipeline.errors import ViewError
from pipeline.views import BlockViews, ViewsConfig
from pipeline.views.draws import permutation, philox, stream_hash, uniform, words
from pipeline.views.geometry import Geometry


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    out = philox(np.array(counter, np.uint64), np.array(key, np.uint64))
    assert out.tolist() == expected


def test_draws_are_pinned():
    stream = words([stream_hash("view", 7, "train-0000.tar", "cat", 3)], stage=0, count=3)
    assert [hex(w) for w in stream[0].tolist()] == [
        "0x8a9754b8ab04435c",
        "0x1d6365d6aac864bd",
        "0xed0616149d4c12fe",
    ]
    assert permutation(8, "rows", 0, 1).tolist() == [0, 4, 6, 3, 7, 1, 5, 2]
    crop = Geometry(ViewsConfig(seed=7), "train-0000.tar", ["cat"], 3).crop(0, 375, 500)
    assert (crop.top, crop.left, crop.height, crop.width, crop.flip) == (1, 31, 368, 295, False)


def test_a_view_depends_on_each_part_of_its_name_and_on_nothing_else():
    config = ViewsConfig(seed=1)
    base = Geometry(config, "a.tar", ["k", "l"], 0)
    assert base.crop(0, 300, 400) == Geometry(config, "a.tar", ["l", "k"], 0).crop(1, 300, 400)
    others = [
        Geometry(ViewsConfig(seed=2), "a.tar", ["k"], 0),
        Geometry(config, "b.tar", ["k"], 0),
        Geometry(config, "a.tar", ["l"], 0),
        Geometry(config, "a.tar", ["k"], 1),
    ]
    assert all(base.crop(0, 300, 400) != other.crop(0, 300, 400) for other in others)
    # Names are length-prefixed: these two would run together otherwise.
    assert stream_hash("ab", "c") != stream_hash("a", "bc")


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (100, 900)])
def test_crops_are_distributed_as_torchvisions(height, width):
    count = 4000
    config = ViewsConfig(seed=3)
    geometry = Geometry(config, "s.tar", [str(i) for i in range(count)], 0)
    ours = np.array(
        [[c.top, c.left, c.height, c.width] for c in (geometry.crop(i, height, width) for i in range(count))]
    )
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, config.scale, config.ratio) for _ in range(count)])
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    areas = [stats.ks_2samp(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]).pvalue for a, b in [(ours, theirs)]]
    assert min(areas) > 1e-4


def test_flips_happen_as_often_as_asked():
    geometry = Geometry(ViewsConfig(hflip=0.3), "s.tar", [str(i) for i in range(4000)], 0)
    flips = sum(geometry.crop(i, 10, 10).flip for i in range(4000))
    assert stats.binomtest(flips, 4000, 0.3).pvalue > 1e-4


def test_uniform_covers_the_half_open_unit_interval():
    u = uniform(np.array([0, 2**64 - 1, 2**63], np.uint64))
    assert u[0] == 0
    assert u[1] < 1
    assert u[2] == 0.5


@pytest.mark.parametrize("view", [-1, 1.5, "centre"])
def test_a_view_that_does_not_exist_is_refused(view):
    with pytest.raises(ViewError, match="no such view"):
        BlockViews(ViewsConfig(), "s.tar", ["k"], view)
