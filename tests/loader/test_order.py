"""An epoch's sequence: every sample once, local, and a function of seed and epoch alone."""

from itertools import pairwise

import numpy as np
import pytest

from kdpipe.errors import TargetsError
from kdpipe.loader.order import batch_bounds, epoch_order, lane_count, plain_order
from kdpipe.loader.schedule import views_of


def blocks_of(*sizes: int) -> list[np.ndarray]:
    edges = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in pairwise(edges)]


@pytest.mark.parametrize("sizes", [[256] * 40 + [17], [5], [1] * 30, [256, 3, 90, 256, 256]])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_row_comes_once(sizes, batch_size):
    order = epoch_order(blocks_of(*sizes), seed=1, epoch=2, batch_size=batch_size, streams=64, window=8)
    assert sorted(order.rows.tolist()) == list(range(sum(sizes)))
    assert order.bounds[0] == 0
    assert order.bounds[-1] == sum(sizes)


def test_the_sequence_is_pinned_and_differs_by_epoch_and_seed():
    blocks = blocks_of(4, 4, 4, 3)
    order = epoch_order(blocks, seed=0, epoch=0, batch_size=4, streams=2, window=1)
    assert order.rows.tolist() == [7, 14, 6, 13, 4, 12, 5, 8, 3, 11, 2, 10, 0, 9, 1]
    assert order.streams.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]
    others = [epoch_order(blocks, s, e, 4, 2, 1).rows.tolist() for s, e in [(0, 1), (1, 0)]]
    assert order.rows.tolist() not in others


def test_streams_take_turns_and_stay_in_their_windows():
    blocks = blocks_of(*[16] * 32)
    order = epoch_order(blocks, seed=3, epoch=0, batch_size=32, streams=4, window=2)
    assert order.streams[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    for stream in range(4):
        rows = order.rows[order.streams == stream]
        windows = [set((rows[i : i + 32] // 16).tolist()) for i in range(0, len(rows), 32)]
        assert all(len(w) == 2 for w in windows)
        assert not np.array_equal(rows, np.sort(rows))


def test_streams_are_nearly_equally_long():
    blocks = blocks_of(*[256] * 190, *[37] * 20)
    order = epoch_order(blocks, seed=3, epoch=0, batch_size=256, streams=64, window=8)
    lengths = np.bincount(order.streams)
    assert lengths.max() - lengths.min() <= 256


@pytest.mark.parametrize(
    ("rows", "batch", "sizes"),
    [
        (10, 5, [5, 5]),
        (11, 5, [5, 3, 3]),
        (14, 5, [5, 5, 4]),
        (4, 5, [4]),
        (6, 5, [3, 3]),
        (9, 5, [5, 4]),
        (1, 1, [1]),
    ],
)
def test_a_rest_shares_the_last_two_batches(rows, batch, sizes):
    assert np.diff(batch_bounds(rows, batch)).tolist() == sizes


def test_no_batch_is_smaller_than_half_a_batch():
    for rows in range(64, 400):
        sizes = np.diff(batch_bounds(rows, 64))
        assert sizes.min() >= 32
        assert sizes.max() <= 64
        assert sizes.sum() == rows


def test_streams_are_cut_to_what_there_is():
    assert lane_count(blocks=3, batch_size=64, streams=64) == 3
    assert lane_count(blocks=300, batch_size=16, streams=64) == 16
    assert lane_count(blocks=300, batch_size=256, streams=64) == 64


def test_evaluation_goes_in_index_order():
    order = plain_order(np.arange(10), 4)
    assert order.rows.tolist() == list(range(10))
    assert np.diff(order.bounds).tolist() == [4, 4, 2]


def test_without_a_cache_every_epoch_has_a_view_of_its_own():
    assert [views_of(e, None, "cycle", 0) for e in range(5)] == [(0,), (1,), (2,), (3,), (4,)]


def test_cycle_shows_each_cached_view_once_a_round_in_new_orders():
    views = [0, 1, 2, 3, 4, 5, 9]
    seen = [views_of(e, views, "cycle", 0)[0] for e in range(21)]
    rounds = [seen[i : i + 7] for i in (0, 7, 14)]
    assert rounds[0] == views
    assert all(sorted(r) == views for r in rounds)
    assert len({tuple(r) for r in rounds}) == 3


def test_strict_refuses_a_view_that_is_not_cached():
    assert views_of(1, [4, 6], "strict", 0) == (6,)
    with pytest.raises(TargetsError, match="more epochs than cached views; found epoch 2; allowed: 2 epochs"):
        views_of(2, [4, 6], "strict", 0)
