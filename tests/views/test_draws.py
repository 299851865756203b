"""Draws are for ever: published vectors and golden values, and each draw depends on its own name alone."""

import numpy as np
import pytest

from kdpipe._util.fingerprint import fingerprint
from kdpipe.errors import ViewError
from kdpipe.views import BlockViews, ViewsConfig
from kdpipe.views.draws import permutation, philox, stream_hash, uniform, words

KEYS = ["cat", "dog", "newt", "owl", "toad"]
EVERYTHING = ViewsConfig(
    seed=7,
    vflip=0.5,
    interpolation="random",
    auto_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.4,
    force_color_jitter=True,
    grayscale_prob=0.2,
    gaussian_blur_prob=0.2,
    re_prob=0.25,
    re_mode="pixel",
    re_count=3,
    mixup=0.8,
    cutmix=1.0,
)


def draws(config: ViewsConfig, shard: str = "train-0000.tar", view: int = 3, keys: list[str] = KEYS) -> list[dict]:
    block = BlockViews(config, shard, keys, view)
    return [block.draws(i, 375, 500, 224) for i in range(len(keys))]


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


def test_words_are_pinned():
    stream = words([stream_hash("view", 7, "train-0000.tar", "cat", 3)], stage=0, count=3)
    assert [hex(w) for w in stream[0].tolist()] == [
        "0x8a9754b8ab04435c",
        "0x1d6365d6aac864bd",
        "0xed0616149d4c12fe",
    ]
    assert permutation(8, "rows", 0, 1).tolist() == [0, 4, 6, 3, 7, 1, 5, 2]


def test_draws_with_everything_on_are_pinned():
    assert draws(EVERYTHING)[4] == {
        "box": {"top": 10, "left": 3, "height": 151, "width": 190},
        "interpolation": "bicubic",
        "hflip": True,
        "vflip": False,
        "operations": [
            ["Rotate", 27.46861119568348, "bilinear"],
            ["Brightness", 1.065408742478828, ""],
            ["Contrast", 0.8011351445324815, ""],
            ["Color", 0.7014673748215874, ""],
            ["Blur", 0.17070642714702283, ""],
        ],
        "partner": 3,
        "lam": 0.32922884821891785,
        "cutmix": None,
        "erased": [[140, 81, 57, 22], [159, 58, 30, 28]],
    }


@pytest.mark.parametrize(
    ("mode", "digest", "box"),
    [
        ("rrc", "85751c219e83a206", {"top": 1, "left": 31, "height": 368, "width": 295}),
        ("rkrc", "cf2660e9dbff8e2e", {"height": 233, "width": 287, "top": 4, "left": 32}),
        ("rkrr", "5d7528794417a125", {"height": 233, "width": 287, "top": 2, "left": 9}),
    ],
)
def test_draws_of_each_crop_mode_are_pinned(mode, digest, box):
    found = draws(EVERYTHING.model_copy(update={"train_crop_mode": mode}))
    assert found[0]["box"] == box
    assert fingerprint(found)[:16] == digest


def test_the_same_name_draws_the_same_and_another_name_another():
    alone = EVERYTHING.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    base = draws(alone)
    assert draws(alone) == base
    assert draws(alone, keys=KEYS[::-1]) == base[::-1]
    others = [
        draws(alone.model_copy(update={"seed": 8})),
        draws(alone, shard="train-0001.tar"),
        draws(alone, view=4),
        draws(alone, keys=[f"{k}s" for k in KEYS]),
    ]
    assert all(a["box"] != b["box"] for other in others for a, b in zip(other, base, strict=True))
    # Names are length-prefixed: these two would run together otherwise.
    assert stream_hash("ab", "c") != stream_hash("a", "bc")


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"train_crop_mode": "rkrr"}, {"box"}),
        ({"hflip": 0.0}, {"hflip"}),
        ({"vflip": 0.0}, {"vflip"}),
        ({"interpolation": "bilinear"}, {"interpolation", "operations"}),
        ({"auto_augment": None}, {"operations"}),
        ({"force_color_jitter": False, "grayscale_prob": 0.0, "gaussian_blur_prob": 0.0}, {"operations"}),
        ({"re_prob": 0.0}, {"erased"}),
        ({"mixup": 0.0, "cutmix": 0.0}, {"partner", "lam", "cutmix"}),
    ],
)
def test_a_setting_changes_its_own_draws_and_no_others(change, affected):
    many = [f"{n:03}" for n in range(40)]
    before, after = draws(EVERYTHING, keys=many), draws(EVERYTHING.model_copy(update=change), keys=many)
    changed = {name for a, b in zip(before, after, strict=True) for name in a if a[name] != b[name]}
    assert changed == affected


def test_jitter_draws_the_same_beside_rand_augment_as_without_it():
    both, jitter = draws(EVERYTHING), draws(EVERYTHING.model_copy(update={"auto_augment": None}))
    for a, b in zip(both, jitter, strict=True):
        assert a["operations"][-len(b["operations"]) :] == b["operations"]


def test_evaluation_views_draw_nothing():
    assert BlockViews(EVERYTHING, "s.tar", KEYS, "center").draws(0, 375, 500, 224) == {}


def test_uniform_covers_the_half_open_unit_interval():
    u = uniform(np.array([0, 2**64 - 1, 2**63], np.uint64))
    assert u[0] == 0
    assert u[1] < 1
    assert u[2] == 0.5


@pytest.mark.parametrize("view", [-1, 1.5, "centre"])
def test_a_view_that_does_not_exist_is_refused(view):
    with pytest.raises(ViewError, match="no such view"):
        BlockViews(ViewsConfig(), "s.tar", ["k"], view)
