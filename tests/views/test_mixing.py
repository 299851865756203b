"""Pairs are mixed as timm mixes them, and belong to the block: not to a batch, a worker or an order."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import FastCollateMixup, Mixup, mixup

from kdpipe.errors import ViewError
from kdpipe.views import BlockViews, ViewsConfig, render_view
from kdpipe.views.mixing import Mix, MixingDraws, members, mixed_labels, partner_names
from kdpipe.views.mixing import partners as partners_of_blocks

PAIRS = 20_000
LEVEL = 1e-4
BOTH = ViewsConfig(seed=2, mixup=0.8, cutmix=1.0)


def partners(config, shard, names, view):
    """Of one block."""
    return partners_of_blocks(partner_names(config, [(shard, members(names))], view), len(names))[0]


def keys(count: int) -> list[str]:
    return [f"{i:05}" for i in range(count)]


def noise(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.8, "cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 0.5, "mixup_prob": 0.7, "mixup_switch_prob": 0.3},
        {"mixup": 0.3},
        {"cutmix": 1.0, "mixup_prob": 0.9},
    ],
)
def test_shares_and_boxes_are_timms(settings):
    config = ViewsConfig(**settings)
    drawn = MixingDraws(config, "s.tar", keys(2 * PAIRS), 0)
    firsts = np.flatnonzero(drawn.partner > np.arange(2 * PAIRS))
    mixes = [m for i in firsts.tolist() if (m := drawn.of(i)) is not None]
    np.random.seed(0)
    timms = Mixup(config.mixup, config.cutmix, None, config.mixup_prob, config.mixup_switch_prob, mode="pair")
    lam, cut = timms._params_per_elem(PAIRS)
    cut = cut & (lam < 1)
    boxed = [mixup.cutmix_bbox_and_lam((3, 224, 224), x) for x in lam[cut]]
    assert len(firsts) == PAIRS
    assert stats.chi2_contingency(_coins([len(mixes), (lam < 1).sum()], PAIRS)).pvalue > LEVEL
    own_boxed = [m for m in mixes if m.box is not None]
    if cut.any():
        assert stats.chi2_contingency(_coins([len(own_boxed), cut.sum()], PAIRS)).pvalue > LEVEL
        assert stats.ks_2samp([m.lam for m in own_boxed], [share for _, share in boxed]).pvalue > LEVEL
        ours, theirs = np.array([m.pixels(224) for m in own_boxed]), np.array([box for box, _ in boxed])
        for a, b in zip(ours.T, theirs[:, [0, 2, 1, 3]].T, strict=True):
            assert stats.ks_2samp(a, b).pvalue > LEVEL
    blended = [m.lam for m in mixes if m.box is None]
    assert bool(blended) == (config.mixup > 0)
    if blended:
        assert stats.ks_2samp(blended, lam[~cut & (lam < 1)]).pvalue > LEVEL


def _coins(happened: list[int], count: int) -> list[list[int]]:
    # Half a draw more of each, so that what always happens has no empty column.
    return [[n + 0.5, count - n + 0.5] for n in happened]


def test_a_box_covers_what_its_share_says_at_every_size():
    drawn = MixingDraws(ViewsConfig(cutmix=1.0), "s.tar", keys(400), 0)
    for i in range(400):
        mix = drawn.of(i)
        assert mix is not None
        for size in (32, 224, 384):
            top, left, bottom, right = mix.pixels(size)
            assert 0 <= top <= bottom <= size
            assert 0 <= left <= right <= size
            assert abs(1 - (bottom - top) * (right - left) / size**2 - mix.lam) <= 2 / size


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_pixels_and_targets_are_those_of_timms_fast_collate(settings, monkeypatch):
    count, size, classes = 24, 32, 7
    block = BlockViews(ViewsConfig(seed=4, **settings), "s.tar", keys(count), 1)
    own, labels = noise(count, size), np.random.default_rng(1).integers(0, classes, count)
    firsts = [i for i in range(count) if block.mixing.partner[i] > i]
    order = [*firsts, *(int(block.mixing.partner[i]) for i in firsts[::-1])]
    drawn = [block.mixing.of(i) for i in firsts]
    lam = np.array([m.lam for m in drawn], np.float32)
    collate = FastCollateMixup(mode="pair", label_smoothing=0.1, num_classes=classes)
    monkeypatch.setattr(
        collate, "_params_per_elem", lambda n: (lam.copy(), np.array([m.box is not None for m in drawn]))
    )
    boxes = iter([m.pixels(size) for m in drawn])

    def given(shape, share, **_):
        top, left, bottom, right = next(boxes)
        return (top, bottom, left, right), share

    monkeypatch.setattr(mixup, "cutmix_bbox_and_lam", given)
    images, targets = collate([(own[i].transpose(2, 0, 1).copy(), int(labels[i])) for i in order])
    mixed = own.copy()
    for i in firsts:
        block.mix(i, mixed[i], mixed[int(block.mixing.partner[i])])
    distance = np.abs(images.permute(0, 2, 3, 1).numpy().astype(int) - mixed[order])
    if "cutmix" in settings:
        assert distance.max() == 0
    else:
        # Ours rounds a float sum of another order: halves may fall to the other side.
        assert distance.max() <= 1
        assert (distance > 0).mean() < 1e-3
    assert block.mixing.labels(labels)[order].tolist() == targets.numpy().argmax(axis=1).tolist()


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_either_of_a_pair_may_be_asked_to_mix(settings):
    block = BlockViews(ViewsConfig(seed=1, **settings), "s.tar", keys(8), 0)
    for i in range(8):
        partner = block.partner(i)
        assert block.partner(partner) == i
        first, second = noise(2, 24), noise(2, 24)
        block.mix(i, first[0], first[1])
        block.mix(partner, second[1], second[0])
        assert np.array_equal(first, second)
        assert not np.array_equal(first, noise(2, 24))


@pytest.mark.parametrize("lam", [0.0, 0.25, 0.5, 1.0])
def test_each_of_a_pair_keeps_its_share(lam):
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    Mix(lam, None).apply(black, white)
    assert set(black.ravel()) == {round(200 * (1 - lam))}
    assert set(white.ravel()) == {round(200 * lam)}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 255, 256])
def test_partners_are_mutual_and_an_odd_row_stays_alone(count):
    drawn = MixingDraws(BOTH, "s.tar", keys(count), 5)
    alone = np.flatnonzero(drawn.partner < 0)
    assert len(alone) == count % 2
    assert (drawn.lam[alone] == 1).all()
    assert all(drawn.of(i) is None for i in alone.tolist())
    paired = np.flatnonzero(drawn.partner >= 0)
    assert np.array_equal(drawn.partner[drawn.partner[paired]], paired)
    assert (drawn.partner[paired] != paired).all()
    assert np.array_equal(drawn.lam[drawn.partner[paired]], drawn.lam[paired])


def test_partners_belong_to_seed_shard_members_and_view():
    base = partners(BOTH, "s.tar", keys(64), 0)
    assert np.array_equal(base, partners(BOTH, "s.tar", keys(64), 0))
    others = [
        partners(BOTH.model_copy(update={"seed": 3}), "s.tar", keys(64), 0),
        partners(BOTH, "t.tar", keys(64), 0),
        partners(BOTH, "s.tar", keys(64), 1),
        partners(BOTH, "s.tar", [*keys(63), "other"], 0),
        partners(BOTH, "s.tar", keys(66), 0)[:64],
    ]
    assert all((base != other).mean() > 0.8 for other in others)
    # Keys that run together otherwise: members are told apart by their lengths too.
    assert not np.array_equal(
        partners(BOTH, "s", ["ab", "c", *keys(62)], 0), partners(BOTH, "s", ["a", "bc", *keys(62)], 0)
    )


def test_every_row_meets_every_other_equally_often():
    met = [partners(BOTH, "s.tar", keys(6), view)[0] for view in range(2000)]
    assert stats.chisquare(np.bincount(met, minlength=6)[1:]).pvalue > LEVEL
    left = [int(np.flatnonzero(partners(BOTH, "s.tar", keys(5), view) < 0)[0]) for view in range(2000)]
    assert stats.chisquare(np.bincount(left, minlength=5)).pvalue > LEVEL


def test_mix_every_keeps_the_partner_and_draws_the_share_anew():
    config = BOTH.model_copy(update={"mix_every": 3})
    drawn = [MixingDraws(config, "s.tar", keys(32), view) for view in range(7)]
    same = [np.array_equal(a.partner, b.partner) for a, b in itertools.pairwise(drawn)]
    assert same == [True, True, False, True, True, False]
    assert all((a.lam != b.lam).all() for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_label_of_a_mixed_view_is_the_argmax_of_timms_target(smoothing):
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 5, (600, 2))
    lam = np.where(rng.random(600) < 0.3, 0.5, rng.random(600)).astype(np.float32)
    lam[:2] = 0, 1
    both = torch.from_numpy(np.concatenate([pairs[:, 0], pairs[::-1, 1]]))
    share = torch.from_numpy(np.concatenate([lam, lam[::-1]])[:, None])
    target = mixup.mixup_target(both, 5, share, smoothing)[:600].numpy()
    # NumPy's argmax takes the lowest class among equal ones.
    assert mixed_labels(pairs, lam).tolist() == target.argmax(axis=1).tolist()


def test_a_mixed_view_has_a_label_only_where_both_samples_have():
    pairs = np.array([[3, -1], [-1, 3], [-1, -1], [3, 4]])
    assert mixed_labels(pairs, np.array([0.9, 0.1, 0.5, 0.9])).tolist() == [-1, -1, -1, 3]
    drawn = MixingDraws(BOTH, "s.tar", keys(5), 0)
    alone = int(np.flatnonzero(drawn.partner < 0)[0])
    assert drawn.labels(np.arange(10, 15))[alone] == 10 + alone


def test_a_mixed_view_of_one_sample_is_refused_in_one_line():
    with pytest.raises(ViewError, match=r"s\.tar key k: a mixed view needs its partner") as error:
        render_view(BOTH, "s.tar", "k", 0, noise(1, 32)[0], 16)
    assert "\n" not in str(error.value)
    # The center view mixes nothing.
    assert render_view(BOTH, "s.tar", "k", "center", noise(1, 32)[0], 16).shape == (16, 16, 3)
