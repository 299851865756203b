"""Policies: what is refused, what identifies cached pixels, and where timm's rules decide."""

import inspect
import json

import pytest
from pydantic import ValidationError
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import ColorJitter

from kdpipe._util.fingerprint import canonical_json
from kdpipe.views import ViewsConfig
from kdpipe.views.policy import POLICY_VERSION

RAND = {"auto_augment": "rand-m9-mstd0.5-inc1"}
JITTER = {"color_jitter": 0.4}
ERASING = {"re_prob": 0.25}
MIXING = {"mixup": 0.8, "cutmix": 1.0}

# Settings that have no effect and are told apart all the same: such a cache is refused needlessly.

# For each setting a policy in which another value of it makes other pixels.
EFFECTS = {
    "seed": ({}, 1),
    "train_crop_mode": ({}, "rkrr"),
    "scale": ({}, (0.25, 1)),
    "ratio": ({}, (1, 1)),
    "hflip": ({}, 0.0),
    "vflip": ({}, 0.5),
    "interpolation": ({}, "random"),
    "auto_augment": ({}, "rand"),
    "fill": (RAND, (0, 0, 0)),
    "color_jitter": ({}, 0.1),
    "color_jitter_prob": (JITTER, 0.5),
    "force_color_jitter": (RAND | JITTER, True),
    "grayscale_prob": ({}, 0.2),
    "gaussian_blur_prob": ({}, 0.2),
    "re_prob": ({}, 0.25),
    "re_mode": (ERASING, "pixel"),
    "re_count": (ERASING, 3),
    "re_area": (ERASING, (0.1, 0.2)),
    "re_aspect": (ERASING, (0.5, 2)),
    "mixup": ({}, 0.2),
    "cutmix": ({}, 0.5),
    "mixup_prob": (MIXING, 0.5),
    "mixup_switch_prob": (MIXING, 0.1),
    "mix": (MIXING, "targets"),
    "mix_every": (MIXING, 2),
    "crop_pct": ({}, 1.0),
    "exif": ({}, "apply"),
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", x) for x in (-1, 2**63, 0.5)),
        ("train_crop_mode", "resize"),
        *(("scale", x) for x in ((0, 1), (0.5, 0.1), (0.5, 1.2), (0.1, 0.2, 0.3), 0.5, (0.1, float("nan")))),
        *(("ratio", x) for x in ((2, 1), (0, 1), (-1, 1), (1, float("inf")))),
        *((name, x) for name in ("hflip", "vflip", "grayscale_prob", "gaussian_blur_prob") for x in (-0.1, 1.5)),
        *((name, x) for name in ("color_jitter_prob", "re_prob", "mixup_prob", "mixup_switch_prob") for x in (-0.1, 2)),
        ("interpolation", "lanczos"),
        *(("fill", x) for x in ((300, 0, 0), (0, 0, -1), (1, 2), 128, (0.5, 1, 1))),
        *(("color_jitter", x) for x in (-0.1, (0.1, 0.2), (0.1, 0.2, 0.3, 0.6), (0.1, -0.2, 0.3), (0.1,) * 5, ())),
        ("re_mode", "noise"),
        *(("re_count", x) for x in (0, 17, 1.5)),
        *(("re_area", x) for x in ((0, 0.5), (0.5, 0.2), (0.5, 1.5))),
        *(("re_aspect", x) for x in ((0, 2), (3, 0.3))),
        *((name, x) for name in ("mixup", "cutmix") for x in (-0.1, float("nan"), float("inf"))),
        ("mix", "labels"),
        ("mix_every", 0),
        *(("crop_pct", x) for x in (0, 1.1)),
        ("exif", "maybe"),
        ("zoom", 1),
    ],
)
def test_a_value_that_is_impossible_is_refused_once_by_name(key, value):
    _assert_refused(key, value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "v0", "original-mstd0.5", "augmix-m3", "random-m9", "Rand-m9", "rand-", "rand-m", "rand-m9-m8"),
        *("rand-x3", "rand-m9.5", "rand-m-9", "rand-n0", "rand-n2.5", "rand-n101", "rand-n16-tweights", "rand-n4-t3a-"),
        *("rand-p1.5", "rand-p.5", "rand-mmax9.5", "rand-mstdinf", "rand-inc", "rand-inc0.5", "rand-t", "rand-t3b"),
        *("rand-w0", "rand_m9", "rand-m9 -n2", "rand-tweights-t3a"),
    ],
)
def test_a_string_that_means_nothing_to_timm_is_refused(text):
    _assert_refused("auto_augment", text)


def _assert_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError) as error:
        ViewsConfig(**{key: value})
    (found,) = error.value.errors()
    assert key in found["loc"] or found["msg"].startswith(f"Value error, {key}")
    assert "\n" not in found["msg"]


@pytest.mark.parametrize("value", [[0.08, 1], (0.08, 1.0)])
def test_ranges_are_read_from_lists_too(value):
    assert ViewsConfig(scale=value).scale == (0.08, 1.0)


def test_every_setting_is_part_of_the_identity_where_it_has_an_effect():
    assert set(EFFECTS) == set(ViewsConfig.model_fields)
    for key, (base, value) in EFFECTS.items():
        assert ViewsConfig(**base).identity() != ViewsConfig(**base | {key: value}).identity(), key


@pytest.mark.parametrize(
    ("base", "change"),
    [
        (RAND, JITTER | {"color_jitter_prob": 0.5}),
        ({}, {"fill": (0, 0, 0)}),
        ({}, {"color_jitter_prob": 0.3, "force_color_jitter": True}),
        ({}, {"color_jitter": 0.0}),
        ({}, {"re_mode": "pixel", "re_count": 3, "re_area": (0.1, 0.2), "re_aspect": (1, 2)}),
        ({}, {"mixup_prob": 0.3, "mixup_switch_prob": 0.2, "mix_every": 4, "mix": "targets"}),
        ({}, MIXING | {"mixup_prob": 0.0}),
        ({}, {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}),
        ({"train_crop_mode": "rkrr"}, {"scale": (0.8, 1.0), "ratio": (0.9, 1 / 0.9)}),
        ({"train_crop_mode": "rkrc", "scale": (0.8, 1.0)}, {"ratio": (0.9, 1 / 0.9)}),
        pytest.param(JITTER, {"force_color_jitter": True}),
        pytest.param(JITTER | {"auto_augment": "rand-t3a"}, {"force_color_jitter": True}),
        pytest.param({"mixup": 0.2}, {"mixup_switch_prob": 0.1}),
        pytest.param(JITTER, {"color_jitter_prob": 1.0}),
        pytest.param(JITTER, {"color_jitter": (0.4, 0.4, 0.4)}),
    ],
)
def test_what_has_no_effect_is_no_part_of_the_identity(base, change):
    assert ViewsConfig(**base).identity() == ViewsConfig(**base | change).identity()


def test_the_identity_is_json_and_names_its_version():
    identity = ViewsConfig(**RAND, **JITTER, **ERASING, **MIXING).identity()
    assert identity["version"] == POLICY_VERSION
    assert json.loads(canonical_json(identity)) == identity


def test_mixing_targets_caches_the_unmixed_views_and_mixes_in_the_student():
    plain, mixed = ViewsConfig(**RAND), ViewsConfig(**RAND, **MIXING)
    targets = mixed.model_copy(update={"mix": "targets"})
    assert targets.identity() == plain.identity() != mixed.identity()
    assert targets.cached == plain
    assert mixed.cached == mixed
    assert not targets.cached.mixes
    # Students that mix otherwise differ, though they read one cache.
    others = [targets.model_copy(update={"mixup": 0.1}), targets.model_copy(update={"mix_every": 4}), plain]
    assert len({canonical_json(p.student_identity()) for p in (targets, *others)}) == 4
    assert plain.student_identity() == {}


@pytest.mark.parametrize("jitter", [None, 0.4, (0.4, 0.4, 0.4, 0.1)])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("auto", [None, "rand-m9-inc1", "rand-m9-t3a", "rand-m6-t3aw-inc1", "rand-tweights"])
def test_rand_augment_replaces_jitter_where_it_does_in_timm(jitter, force, auto):
    config = ViewsConfig(color_jitter=jitter, force_color_jitter=force, auto_augment=auto)
    timms = transforms_imagenet_train(32, color_jitter=jitter, force_color_jitter=force, auto_augment=auto)
    applied = [t for t in timms.transforms if isinstance(t, ColorJitter)]
    assert (config.jitter is not None) == bool(applied)
    if config.jitter is not None:
        ranges = [(max(0.0, 1 - x), 1 + x) for x in config.jitter[:3]]
        assert ranges == [applied[0].brightness, applied[0].contrast, applied[0].saturation]
        assert (applied[0].hue or (0, 0))[1] == config.jitter[3]
    remark = any("color_jitter" in line for line in config.remarks())
    assert remark == (jitter is not None and not applied)


def test_defaults_are_timms():
    theirs = {name: p.default for name, p in inspect.signature(transforms_imagenet_train).parameters.items()}
    ours = ViewsConfig()
    for name in set(theirs) & set(ViewsConfig.model_fields) - {"color_jitter", "interpolation"}:
        default = "rrc" if name == "train_crop_mode" else theirs[name]
        assert getattr(ours, name) == default, name
    erasing = RandomErasing()
    assert ours.re_area == (erasing.min_area, erasing.max_area)
    assert ours.re_aspect == (0.3, 1 / 0.3)


def test_what_has_no_effect_is_said_in_one_line():
    assert ViewsConfig(**RAND, **ERASING, **MIXING).remarks() == []
    (remark,) = ViewsConfig(**RAND, **JITTER).remarks()
    assert "color_jitter" in remark
    assert "\n" not in remark
