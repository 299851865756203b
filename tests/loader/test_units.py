"""What is decoded once and moves together: pairs that are mixed, several views of a sample, crops of an evaluation."""

import numpy as np
import pytest
import torch

import kdpipe.loader.worker as rows_module
from kdpipe.cache import CacheReader
from kdpipe.errors import ShardError, TargetsError, TrainingError
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.loader.batch import view_code
from kdpipe.trainer.teachers import targets_of
from kdpipe.views import FIVE_CROP, ViewsConfig
from kdpipe.views.block import labelling_index
from tests.loader.test_loader import assert_same, loader
from tests.tiny import RECIPE, SIZE, VIEWS, make_cache, make_world

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def by_view(batches: list[Batch]) -> dict[tuple[int, int], torch.Tensor]:
    """Pixels by row and view code."""
    return {
        (r, v): image for b in batches for r, v, image in zip(b.rows.tolist(), b.views.tolist(), b.images, strict=True)
    }


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Rows in the order in which they are decoded."""
    seen: list[int] = []
    decode = rows_module.decode_sample
    monkeypatch.setattr(rows_module, "decode_sample", lambda i, row, *a: seen.append(row) or decode(i, row, *a))
    return seen


@pytest.mark.parametrize("batch_size", [16, 7])
def test_each_image_is_decoded_once_though_pairs_are_mixed(world, decoded, batch_size):
    batches = list(loader(world, None, RECIPE, batch_size=batch_size).epoch(0))
    assert sorted(decoded) == list(range(94))
    assert any((b.lam < 1).any() for b in batches)


def test_pairs_follow_each_other(world):
    order = loader(world, None, RECIPE).order(4)
    paired = order.partners != order.rows
    assert paired.sum() == 92  # of blocks of 16, 16, 8; 16, 16, 1; 16, 5: two rows are alone
    for unit in np.unique(order.units[paired]):
        a, b = np.flatnonzero(order.units == unit)
        assert b == a + 1
        assert order.partners[a] == order.rows[b]


def test_a_limit_changes_no_view_though_partners_lie_beyond(world, decoded):
    whole = by_view(list(loader(world, None, RECIPE).epoch(0)))
    decoded.clear()
    index = world.index.limit(50)
    part = by_view(list(Loader(index, RECIPE, SIZE, 16).epoch(0)))
    assert sorted(r for r, _ in part) == list(range(50))
    assert max(decoded) >= 50
    assert all(torch.equal(image, whole[name]) for name, image in part.items())


def test_a_limited_cache_of_mixed_views_agrees_with_the_whole_one(world, policy_cache, policy, tmp_path):
    limited = type(world)(world.folder, world.index.limit(50))
    make_cache(limited, tmp_path / "c", config=policy)
    readers = [CacheReader(url, limited.index, policy) for url in (str(tmp_path / "c"), policy_cache)]
    some, whole = (list(Loader(limited.index, policy, SIZE, 16, cache=r).epoch(1)) for r in readers)
    assert_same(some, whole)


@pytest.fixture(scope="module")
def six_views(world, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("six") / "c"
    make_cache(world, path, views=range(6))
    return str(path)


@pytest.mark.parametrize("together", [2, 3, 6])
def test_views_of_one_decode_share_a_batch_and_come_once_a_pass(world, six_views, decoded, together):
    one = by_view([b for e in range(6) for b in loader(world, six_views).epoch(e)])
    decoded.clear()
    config = LoaderConfig(streams=4, window=2, views_per_decode=together)
    many = loader(world, six_views, loader=config)
    epochs = [list(many.epoch(e)) for e in range(6)]
    assert all(sum(map(len, batches)) == 94 for batches in epochs)
    assert [len(b) for b in epochs[0]] == [16] * 4 + [15] * 2
    seen = by_view([b for batches in epochs for b in batches])
    assert seen.keys() == one.keys()
    assert all(torch.equal(image, one[name]) for name, image in seen.items())
    # Where an epoch or a batch ends inside a unit, its image is decoded again by the next epoch only.
    assert len(decoded) <= 94 * 6 // together + 6
    first = epochs[0][0]
    assert first.rows[:together].unique().numel() == 1
    assert first.views[:together].tolist() == list(range(together))


@pytest.mark.parametrize(("workers", "world_size"), [(2, 1), (0, 3), (2, 2)])
def test_several_views_a_decode_are_the_same_for_workers_and_processes(world, six_views, workers, world_size):
    alone = LoaderConfig(streams=4, window=2, views_per_decode=3)
    config = alone.model_copy(update={"workers": workers})
    expected = list(loader(world, six_views, loader=alone).epoch(4))
    ranks = [loader(world, six_views, rank=r, world=world_size, loader=config) for r in range(world_size)]
    order = ranks[0].order(4)
    for step, (whole, *parts) in enumerate(zip(expected, *(rank.epoch(4) for rank in ranks), strict=True)):
        places = slice(order.bounds[step], order.bounds[step + 1])
        for r, part in enumerate(parts):
            chosen = np.flatnonzero(order.places(r, world_size)[places] >= 0)
            assert torch.equal(part.images, whole.images[chosen])
            assert torch.equal(part.targets["index"], whole.targets["index"][chosen])
    for rank in ranks:
        rank.close()


def test_views_that_do_not_fit_a_decode_are_refused(world, six_views):
    config = LoaderConfig(views_per_decode=4)
    with pytest.raises(TargetsError, match="doesn't divide the cached views; found 4; allowed: a divisor of 6"):
        loader(world, six_views, loader=config).require_epochs(6)
    with pytest.raises(TrainingError, match=r"different partners.*views\.mix_every 1.*multiple of 4"):
        loader(world, None, RECIPE, loader=config).require_epochs(8)
    with pytest.raises(TrainingError, match=r"last pass would show only a part.*found 6 epochs, 4 of them a pass"):
        loader(world, None, loader=config).require_epochs(6)
    with pytest.raises(TrainingError, match="no sample for some processes; found 16; allowed: at least 24"):
        loader(world, None, RECIPE.model_copy(update={"mix_every": 4}), loader=config, world=3)
    kept = RECIPE.model_copy(update={"mix_every": 4})
    assert loader(world, None, kept, loader=config).require_epochs(8) is None


def test_mixed_pairs_are_decoded_once_for_all_views_of_a_decode(world, decoded):
    kept = RECIPE.model_copy(update={"mix_every": 4})
    one = by_view([b for e in range(4) for b in loader(world, None, kept).epoch(e)])
    decoded.clear()
    many = loader(world, None, kept, loader=LoaderConfig(streams=4, window=2, views_per_decode=4))
    seen = by_view([b for e in range(4) for b in many.epoch(e)])
    assert seen.keys() == one.keys()
    assert all(torch.equal(image, one[name]) for name, image in seen.items())
    assert len(decoded) <= 94 + 2 * 4


MIXES = ViewsConfig(**{**VIEWS.model_dump(), "mixup": 0.8, "cutmix": 1.0})


def test_mixing_targets_is_the_other_algorithm(world, cache_path):
    """The pixels are those of mixed views, the cache is that of unmixed ones, the targets are shares of two."""
    targets = MIXES.model_copy(update={"mix": "targets"})
    assert targets.identity() == VIEWS.identity()
    reader = CacheReader(cache_path, world.index, targets)
    ours = list(loader(world, cache_path, targets).epoch(1))
    theirs = list(loader(world, None, MIXES).epoch(1))
    unmixed = {
        r: b.targets["log_prob"][i] for b in loader(world, cache_path).epoch(1) for i, r in enumerate(b.rows.tolist())
    }
    decode = targets_of(reader)
    assert decode is not None
    order = loader(world, cache_path, targets).order(1)
    partner = dict(zip(order.rows.tolist(), order.partners.tolist(), strict=True))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        for i, row in enumerate(a.rows.tolist()):
            assert torch.equal(a.targets["log_prob"][i], unmixed[row])
            assert torch.equal(a.partner_targets["log_prob"][i], unmixed[partner[row]])
        own, other = (reader.encoding.decode(t).log_probs.exp() for t in (a.targets, a.partner_targets))
        lam = a.lam[:, None]
        torch.testing.assert_close(decode(a).log_probs.exp(), lam * own + (1 - lam) * other)


def test_mixing_targets_stays_within_a_limited_cache(world, tmp_path):
    limited = type(world)(world.folder, world.index.limit(45))
    targets = MIXES.model_copy(update={"mix": "targets"})
    make_cache(limited, tmp_path / "c", config=targets)
    batches = list(
        Loader(limited.index, targets, SIZE, 16, cache=CacheReader(str(tmp_path / "c"), limited.index, targets)).epoch(
            0
        )
    )
    assert all(torch.isfinite(b.partner_targets["log_prob"]).all() for b in batches)


@pytest.mark.parametrize("workers", [0, 3])
def test_five_crops_of_a_sample_follow_each_other(world, tmp_path, workers):
    make_cache(world, tmp_path / "c", views=FIVE_CROP)
    config = LoaderConfig(workers=workers)
    five = loader(world, str(tmp_path / "c"), evaluate=FIVE_CROP, batch_size=32, loader=config)
    batches = list(five.epoch(0))
    assert [len(b) for b in batches] == [30] * 15 + [20]
    assert torch.cat([b.rows for b in batches]).tolist() == [r for r in range(94) for _ in FIVE_CROP]
    codes = [view_code(v) for v in FIVE_CROP]
    assert torch.cat([b.views for b in batches]).tolist() == codes * 94
    five.close()


def test_evaluation_crops_that_are_not_cached_are_named(world, cache_path):
    with pytest.raises(TargetsError, match=r"view top-left is not cached.*--views center, or five-crop"):
        loader(world, cache_path, evaluate=FIVE_CROP)


@pytest.mark.parametrize("prob", [1.0, 0.5])
def test_labels_of_mixed_views_are_known_where_both_are(tmp_path, prob):
    half = make_world(tmp_path / "w", unlabelled=0.4)
    labels = np.asarray(half.index.labels)
    one = Loader(half.index, RECIPE.model_copy(update={"mixup_prob": prob}), SIZE, 16)
    order = one.order(0)
    paired = order.partners != order.rows
    assert 92 * prob - 25 < paired.sum() <= 92 * prob + 25
    assert one.labelled(0) == ((labels[order.rows] >= 0) & (labels[order.partners] >= 0)).sum()
    for step, batch in enumerate(one.epoch(0)):
        place = slice(order.bounds[step], order.bounds[step + 1])
        known = (labels[order.rows[place]] >= 0) & (labels[order.partners[place]] >= 0)
        assert np.array_equal(batch.label_pairs[:, 1].numpy(), labels[order.partners[place]])
        assert (batch.lam.numpy()[order.partners[place] == order.rows[place]] == 1).all()
        assert np.array_equal(batch.labels.numpy() >= 0, known)
        assert batch.global_labelled == known.sum()


def test_processes_read_blocks_of_their_own_though_pairs_and_singles_take_turns(tmp_path):
    """64 blocks of odd lengths: each opened by about one process, not by all."""
    world = make_world(tmp_path / "w", samples=(15,) * 64)
    processes = 4
    config = LoaderConfig(streams=8, window=2)
    opened = 0
    for rank in range(processes):
        one = Loader(world.index, RECIPE, SIZE, 32, loader=config, rank=rank, world=processes)
        order = one.order(0)
        mine = order.rows[order.places(rank, processes) >= 0]
        opened += len({world.index.block_of(row) for row in mine.tolist()})
    assert 64 <= opened <= 64 * 1.4


def test_labels_beyond_a_limit_count_where_mixing_reaches_them(tmp_path):
    """Blocks of 16: a limit of 20 shows labels up to row 31."""
    world = make_world(tmp_path / "w", samples=(40,))
    index = world.index.limit(20)
    assert len(labelling_index(index, RECIPE)) == 32
    assert len(labelling_index(index, VIEWS)) == 20
    first = np.asarray(world.index.labels[:20]).max()
    beyond = np.asarray(world.index.labels[:32]).max()
    labelling_index(index, RECIPE).check_labels(int(beyond) + 1)
    if beyond > first:
        with pytest.raises(ShardError, match="label out of range"):
            labelling_index(index, RECIPE).check_labels(int(first) + 1)
