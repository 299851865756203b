"""`kdpipe.CachedLoader`: its batches, its order, its position, and what it refuses."""

import numpy as np
import pytest
import torch

import kdpipe
from kdpipe.errors import CheckpointError, ConfigError
from kdpipe.loader import Batch
from tests.tiny import SIZE, teacher


@pytest.fixture(scope="module")
def loader(world, policy, policy_cache):
    with kdpipe.CachedLoader(world.index_path, policy_cache, batch_size=16) as made:
        yield made


def rows(batches):
    return [batch.rows.tolist() for batch in batches]


def flat(batches):
    return [row for part in rows(batches) for row in part]


def test_images_are_what_the_teacher_saw_and_targets_what_it_gave(loader, world, policy_cache):
    raw = kdpipe.CachedLoader(world.index, policy_cache, 16, raw=True)
    live = teacher()
    for batch, plain in zip(loader, raw, strict=True):
        assert isinstance(plain, Batch)
        assert plain.images.dtype == torch.uint8
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (len(batch), 3, SIZE, SIZE)
        # The teacher normalises and erases by itself.
        output = live(plain.images.numpy(), plain.erased).logits
        with torch.inference_mode():
            assert torch.allclose(live.built.module(batch.images), output, atol=1e-5)
        kept = batch.targets.index
        live_log_probs = torch.log_softmax(output, dim=1).gather(1, kept)
        assert torch.allclose(batch.targets.log_probs.gather(1, kept), live_log_probs, atol=5e-3)
        assert batch.ground_truth.hard is batch.labels


def test_an_epoch_is_every_sample_once(loader, world):
    loader.set_epoch(0)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    assert sorted(flat(batches)) == list(range(len(world.index)))


def test_epochs_follow_each_other_and_an_abandoned_one_starts_again(loader):
    loader.set_epoch(0)
    first, second = rows(loader), rows(loader)
    assert first != second
    assert loader.epoch == 2
    loader.set_epoch(0)
    next(iter(loader))
    assert rows(loader) == first
    loader.set_epoch(1)
    assert rows(loader) == second
    # As Lightning does: len(loader) batches, and no request for another one.
    loader.set_epoch(0)
    for expected in (first, second):
        batches = iter(loader)
        assert rows(next(batches) for _ in range(len(loader))) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_it_resumes_inside_an_epoch(world, cache_path, workers):
    with kdpipe.CachedLoader(world.index, cache_path, 16, seed=5) as whole:
        whole.set_epoch(1)
        expected = list(whole)
    with kdpipe.CachedLoader(world.index, cache_path, 16, seed=5, workers=workers) as begun:
        begun.set_epoch(1)
        batches = iter(begun)
        before = [next(batches) for _ in range(2)]
        state = begun.state_dict()
        assert (state["epoch"], state["step"]) == (1, 2)
    with kdpipe.CachedLoader(world.index, cache_path, 16, seed=5, workers=workers) as resumed:
        resumed.load_state_dict(state)
        resumed.set_epoch(1)  # as loops do
        after = list(resumed)
        assert rows([*before, *after]) == rows(expected)
        for found, wanted in zip(after, expected[2:], strict=True):
            assert torch.equal(found.images, wanted.images)
            assert torch.equal(found.targets.log_probs, wanted.targets.log_probs)
        assert resumed.epoch == 2


def test_the_state_after_the_last_batch_is_the_next_epoch(loader):
    loader.set_epoch(0)
    for batch in loader:
        if batch.step == len(loader) - 1:
            assert {**loader.state_dict(), "order": None} == {"epoch": 1, "step": 0, "order": None}
    assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another seed"),
        ({"batch_size": 8}, "another batch_size"),
        ({"window": 2}, "another window"),
    ],
)
def test_a_state_of_other_batches_is_refused(world, cache_path, loader, change, message):
    other = kdpipe.CachedLoader(world.index, cache_path, **{"batch_size": 16, **change})
    own = kdpipe.CachedLoader(world.index, cache_path, 16)
    with pytest.raises(CheckpointError, match=message):
        own.load_state_dict(other.state_dict())
    for state in ({}, {"epoch": 0, "step": -1, "order": {}}, [1], {**own.state_dict(), "step": 99}):
        with pytest.raises(CheckpointError):
            own.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 3}, "index: not a path; found int 3"),
        ({"cache": ["a", "b"]}, "cache: not a path; found list"),
        ({"batch_size": 0}, "batch_size: not a whole number in range; found 0; allowed: 1 or more"),
        ({"batch_size": "16"}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"seed": 1.5}, "seed"),
        ({"mean": (0.5, 0.5)}, "mean: impossible statistics"),
        ({"std": (0.5, 0.5, 0)}, "std: impossible statistics"),
        ({"input_size": SIZE * 2}, f"input_size: .*found {SIZE * 2}; allowed: {SIZE}. .*exact=False"),
    ],
)
def test_impossible_arguments_are_refused(world, cache_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        kdpipe.CachedLoader(**{"index": world.index, "cache": cache_path, "batch_size": 16, **arguments})


def test_another_size_and_other_statistics_where_they_are_requested(world, cache_path):
    own = next(iter(kdpipe.CachedLoader(world.index, cache_path, 16)))
    larger = next(iter(kdpipe.CachedLoader(world.index, cache_path, 16, input_size=24, exact=False)))
    assert larger.images.shape == (16, 3, 24, 24)
    other = next(iter(kdpipe.CachedLoader(world.index, cache_path, 16, mean=(0, 0, 0), std=(1, 1, 1))))
    assert np.allclose(other.images.numpy(), own.images.numpy() * 0.25 + 0.5, atol=1e-6)


def test_processes_get_parts_of_the_same_batches(world, cache_path):
    whole = next(iter(kdpipe.CachedLoader(world.index, cache_path, 16)))
    parts = [next(iter(kdpipe.CachedLoader(world.index, cache_path, 16, rank=r, world_size=2))) for r in range(2)]
    assert sorted(flat(parts)) == sorted(whole.rows.tolist())
    assert parts[0].context.rows == 16
    assert parts[0].context.world == 2


def test_its_repr_describes_it(world, cache_path):
    text = repr(kdpipe.CachedLoader(world.index, cache_path, 16))
    assert text.startswith(f"CachedLoader(94 samples, 6 batches of 16, {SIZE} x {SIZE} pixels, views [0, 1, 2]")


def test_a_batch_moves_with_all_its_tensors(loader):
    batch = next(iter(loader))
    moved = batch.to("meta")
    for tensor in (moved.images, moved.labels, moved.rows, moved.targets.log_probs, moved.ground_truth.hard):
        assert tensor.device.type == "meta"
    assert moved.context == batch.context
