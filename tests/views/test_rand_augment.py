"""RandAugment's strings mean what they mean in timm, and draw operations and arguments as timm does."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from timm.data import auto_augment

from kdpipe.views import ViewsConfig, ops
from kdpipe.views.colour import ColourDraws
from kdpipe.views.draws import view_streams
from kdpipe.views.rand_augment import RandAugmentDraws, RandAugmentSpec

COUNT = 20_000
LEVEL = 1e-4
_RESAMPLING = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}

# What timm's transform and ours did to one image: (name, argument, interpolation) of each operation.
Done = list[tuple[str, float | None, str]]


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    return view_streams(5, "s.tar", [str(i) for i in range(COUNT)], 0)


def timms(text: str, count: int, interpolation: str = "bicubic") -> list[Done]:
    """What timm's own transform does, its image operations replaced by recorders."""
    random.seed(0)
    np.random.seed(0)
    params = {"img_mean": (124, 116, 104)}
    if interpolation != "random":
        params["interpolation"] = {name: mode for mode, name in _RESAMPLING.items()}[interpolation]
    transform = auto_augment.rand_augment_transform(text, params)
    done: Done = []
    for op in transform.ops:

        def record(image, *args, name=op.name, **kwargs):
            resample = auto_augment._interpolation(kwargs)
            done.append((name, float(args[0]) if args else None, _RESAMPLING[resample]))
            return image

        op.aug_fn = record
    found = []
    for _ in range(count):
        done.clear()
        transform("image")
        found.append(list(done))
    return found


def ours(text: str, streams: list[bytes], interpolation: str = "bicubic") -> list[Done]:
    drawn = RandAugmentDraws(RandAugmentSpec.parse(text), interpolation, streams)
    return [[tuple(op) for op in drawn.operations(i)] for i in range(len(streams))]


def assert_counts_alike(a: list, b: list) -> None:
    """Two samples of categories pass for one distribution (chi-square; rare categories are pooled)."""
    counts = [Counter(a), Counter(b)]
    total = counts[0] + counts[1]
    common = [name for name, n in total.items() if n >= 20]
    table = [[c[name] for name in common] for c in counts]
    rest = [sum(n for name, n in c.items() if total[name] < 20) for c in counts]
    if sum(rest) >= 20:
        table = [[*row, n] for row, n in zip(table, rest, strict=True)]
    if len(table[0]) > 1:
        assert stats.chi2_contingency(table).pvalue > LEVEL


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("rand-m9-mstd0.5-inc1", COUNT),
        ("rand-m7-n3-p0.8-mstd101-mmax12", COUNT),
        ("rand-m9-tweights", COUNT),
        ("rand-t3a-inc1", COUNT),
        ("rand-m9-mmax12-mstd3-inc1", 5000),
        ("rand-m6-n4-t3aw-mstd1", 5000),
    ],
)
def test_operations_and_arguments_are_timms(text, count, streams):
    mine, theirs = ours(text, streams[:count]), timms(text, count)
    assert_counts_alike([len(d) for d in mine], [len(d) for d in theirs])
    names = [[tuple(name for name, _, _ in done) for done in side] for side in (mine, theirs)]
    assert_counts_alike(*names)
    assert_counts_alike(*([chosen[:1] for chosen in side] for side in names))
    arguments: list[dict[str, list]] = [{}, {}]
    for side, found in zip(arguments, (mine, theirs), strict=True):
        for name, argument, _ in (op for done in found for op in done):
            side.setdefault(name, []).append(argument)
    assert set(arguments[0]) == set(arguments[1])
    for name, given in arguments[0].items():
        other = arguments[1][name]
        if None in given or None in other:
            assert set(given) == set(other) == {None}, name
            continue
        assert stats.ks_2samp(given, other).pvalue > LEVEL, name
        # Whole thresholds and bits, and what is clipped to a bound, are exact values in both.
        if len(set(other)) < 20:
            assert_counts_alike([round(x, 6) for x in given], [round(x, 6) for x in other])


@pytest.mark.parametrize(
    ("text", "distribution"),
    [("rand-m5-mstd1-n4-p1", stats.norm(5, 1)), ("rand-m8-mstd200-n4-p1", stats.uniform(0, 8))],
)
def test_magnitudes_are_normal_or_uniform_and_signs_fair(text, distribution, streams):
    warps = {"Rotate": 3.0, "ShearX": 0.03, "ShearY": 0.03, "TranslateXRel": 0.045, "TranslateYRel": 0.045}
    signed = np.array([op[1] / warps[op[0]] for done in ours(text, streams) for op in done if op[0] in warps])
    assert len(signed) > COUNT
    assert stats.kstest(np.abs(signed), distribution.cdf).pvalue > LEVEL
    assert stats.binomtest(int((signed > 0).sum()), len(signed), 0.5).pvalue > LEVEL


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_warps_interpolate_as_the_policy_says_and_at_random_each_by_itself(interpolation, streams):
    text = "rand-m9-n2-p1-mstd0.5"
    sides = ours(text, streams[:4000], interpolation), timms(text, 4000, interpolation)
    kinds = [[tuple(kind for _, _, kind in done) for done in side] for side in sides]
    assert set(kinds[0]) == set(kinds[1])
    assert len(set(kinds[0])) == (4 if interpolation == "random" else 1)
    assert_counts_alike(*kinds)


@pytest.mark.parametrize("inc", ["", "-inc1"])
@pytest.mark.parametrize("magnitude", range(13))
def test_fixed_magnitudes_give_timms_arguments_exactly(inc, magnitude):
    text = f"rand-m{magnitude}-mmax12-n4-p1{inc}"
    streams = view_streams(0, "s.tar", [str(i) for i in range(300)], 0)
    found = {(name, argument) for done in ours(text, streams) for name, argument, _ in done}
    expected = {(name, argument) for done in timms(text, 300) for name, argument, _ in done}
    assert {(n, None if a is None else round(a, 9)) for n, a in found} == {
        (n, None if a is None else round(a, 9)) for n, a in expected
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rand-m10-inc1", "PosterizeIncreasing"),
        ("rand-m30-mmax30-inc1-mstd9", "PosterizeIncreasing"),
        ("rand-m0-mmax40-mstd30", "Posterize"),
    ],
)
def test_the_strongest_magnitudes_may_keep_no_bit_and_never_fail(text, name):
    colour = ColourDraws(ViewsConfig(auto_augment=text), view_streams(0, "s.tar", [str(i) for i in range(300)], 0))
    image, bits = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), set()
    for i in range(300):
        bits |= {op.argument for op in colour.operations(i) if op.name == name}
        colour.apply(i, image.copy())
    assert min(bits) == 0
    black = image.copy()
    ops.RAND_OPS[name](black, min(bits), "bilinear", (0, 0, 0))
    assert not black.any()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("rand", "rand-m10-n2-p0.5-mstd0-mmax10-inc0"),
        ("rand-inc1-mstd0.5-m9", "rand-m9-mstd0.5-inc1"),
        ("rand-mstd101", "rand-mstd500"),
        ("rand-m9-tweights-inc1", "rand-m9-tweights"),
        ("rand-mmax0", "rand-mmax10"),
    ],
)
def test_strings_that_say_the_same_draw_the_same(text, same, streams):
    assert ours(text, streams[:200]) == ours(same, streams[:200])


@pytest.mark.parametrize("name", ["", "-inc1", "-tweights", "-t3a", "-t3aw"])
def test_sets_and_weights_are_timms(name):
    spec = RandAugmentSpec.parse(f"rand{name}")
    theirs = auto_augment.rand_augment_transform(f"rand{name}", {})
    assert list(spec.names) == [op.name for op in theirs.ops]
    assert (spec.weights is None) == (theirs.choice_weights is None)
    if spec.weights is not None:
        np.testing.assert_allclose(np.array(spec.weights) / sum(spec.weights), theirs.choice_weights, rtol=1e-12)


def test_weighted_operations_do_not_repeat_and_equal_ones_may(streams):
    weighted = ours("rand-n15-p1-tweights", streams[:50])
    assert all(len({name for name, _, _ in done}) == 15 for done in weighted)
    assert any(done[0][0] == done[1][0] for done in ours("rand-p1", streams[:200]))
