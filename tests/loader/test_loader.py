"""The same views and targets, byte for byte, however the work is divided."""

import pickle

import numpy as np
import pytest
import torch

from kdpipe.cache import Cache, CacheReader, Store
from kdpipe.caching.task import run_task
from kdpipe.errors import ShardError, TargetsError, TrainingError
from kdpipe.loader import Batch, Loader, LoaderConfig
from kdpipe.shards import build_index
from kdpipe.views import Normalize, ViewsConfig
from tests.tiny import SIZE, VIEWS, make_cache, make_world, teacher

# Four workers on two cores: torch would rather not.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CONFIG = LoaderConfig(streams=4, window=2)


def loader(data, cache_path, config: ViewsConfig = VIEWS, **changes) -> Loader:
    settings = {"batch_size": 16, "seed": 5, "loader": CONFIG, **changes}
    cache = CacheReader(cache_path, data.index, config) if cache_path else None
    return Loader(data.index, config, SIZE, cache=cache, **settings)


def by_step(batches: list[Batch]) -> list[dict[str, np.ndarray]]:
    names = ("images", "labels", "rows", "views", "label_pairs", "lam")
    return [
        {n: getattr(b, n).numpy() for n in names if getattr(b, n) is not None}
        | {n: t.numpy() for n, t in b.targets.items()}
        | ({} if b.erased is None else {"erased": b.erased.boxes})
        for b in batches
    ]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(by_step(ours), by_step(theirs), strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a)


@pytest.fixture(scope="module")
def plain(world, policy, policy_cache) -> list[Batch]:
    return list(loader(world, policy_cache, policy).epoch(1))


def test_every_view_is_the_one_the_teacher_saw(world, policy, policy_cache, plain):
    cache, asked = Cache(Store(policy_cache)), teacher()
    segment = next(s for s in cache.segments if 1 in s.views)
    seen: list[torch.Tensor] = []
    normalize = Normalize(asked.built.mean, asked.built.std)
    asked.built.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for shard in world.index.shards:
        run_task(world.index, policy, asked, segment, shard, SIZE, threads=2)
    # Blocks of 16 rows in padded batches of 8, view after view.
    rows = [world.index.rows(b) for b in range(world.index.blocks)]
    pixels, at = {}, 0
    for block in rows:
        for view in segment.views:
            for start in range(0, len(block), 8):
                for row, image in zip(block[start : start + 8], seen[at], strict=False):
                    pixels[row, view] = image
                at += 1
    assert at == len(seen)
    for batch in plain:
        shown = normalize(batch.images, batch.erased)
        for row, image in zip(batch.rows.tolist(), shown, strict=True):
            assert torch.equal(image, pixels[row, 1])


def test_every_target_belongs_to_its_row(world, policy, policy_cache, plain):
    reader = CacheReader(policy_cache, world.index, policy)
    for batch in plain:
        for i, row in enumerate(batch.rows.tolist()):
            shard = world.index.shard_of(row)
            stored = reader.read(shard.name, 1, row - shard.first, row - shard.first + 1)
            for name, value in stored.items():
                assert np.array_equal(batch.targets[name][i].numpy(), value[0], equal_nan=value.dtype.kind == "f")
            label = int(world.index.labels[row])
            assert (batch.labels[i] if batch.label_pairs is None else batch.label_pairs[i, 0]) == label


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(world, policy, policy_cache, plain, workers):
    many = loader(world, policy_cache, policy, loader=CONFIG.model_copy(update={"workers": workers}))
    assert_same(list(many.epoch(1)), plain)
    # The same workers serve the next epoch, and the first again.
    assert_same(list(many.epoch(0)), list(loader(world, policy_cache, policy).epoch(0)))
    assert_same(list(many.epoch(1)), plain)
    many.close()


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_same_batches(world, policy, policy_cache, plain, world_size, workers):
    config = CONFIG.model_copy(update={"workers": workers})
    ranks = [loader(world, policy_cache, policy, rank=r, world=world_size, loader=config) for r in range(world_size)]
    order = ranks[0].order(1)
    steps = list(zip(plain, *(rank.epoch(1) for rank in ranks), strict=True))
    for step, (whole, *parts) in enumerate(steps):
        places = slice(order.bounds[step], order.bounds[step + 1])
        for r, part in enumerate(parts):
            chosen = np.flatnonzero(order.places(r, world_size)[places] >= 0)
            assert torch.equal(part.rows, whole.rows[chosen])
            assert torch.equal(part.images, whole.images[chosen])
            assert part.global_rows == len(whole)
            assert part.global_labelled == int((whole.labels >= 0).sum())
        sizes = [len(part) for part in parts]
        assert sum(sizes) == len(whole)
        assert max(sizes) - min(sizes) <= (2 if policy.mixes else 1)
    for rank in ranks:
        rank.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4, 6])
def test_an_epoch_resumes_where_it_stopped(world, policy, policy_cache, plain, workers, start):
    later = loader(world, policy_cache, policy, loader=CONFIG.model_copy(update={"workers": workers}))
    assert_same(list(later.epoch(1, start_step=start)), plain[start:])
    later.close()


@pytest.mark.parametrize("batch_size", [1, 7, 94, 500])
def test_any_batch_size_renders_the_same_views(world, policy, policy_cache, plain, batch_size):
    seen = {int(r): im for b in plain for r, im in zip(b.rows, b.images, strict=True)}
    for batch in loader(world, policy_cache, policy, batch_size=batch_size).epoch(1):
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            assert torch.equal(image, seen[row])


@pytest.mark.parametrize(("classes", "dtype"), [(300, torch.uint16), (70_000, torch.uint32)])
def test_workers_deliver_wide_indices(world, tmp_path, classes, dtype):
    make_cache(world, tmp_path / "c", views=(0,), num_classes=classes)
    alone, many = (loader(world, str(tmp_path / "c"), loader=CONFIG.model_copy(update={"workers": n})) for n in (0, 2))
    batches = list(alone.epoch(0))
    assert batches[0].targets["index"].dtype == dtype
    assert_same(list(many.epoch(0)), batches)
    many.close()


def test_epochs_differ_in_order_and_view(world, cache_path):
    one = loader(world, cache_path)
    rows = [torch.cat([b.rows for b in one.epoch(e)]).tolist() for e in range(3)]
    assert all(sorted(r) == list(range(94)) for r in rows)
    assert rows[0] != rows[1] != rows[2]
    assert [int(next(one.epoch(e)).views[0]) for e in range(3)] == [0, 1, 2]


def test_without_a_cache_views_never_repeat(world):
    free = loader(world, None)
    assert [int(next(free.epoch(e)).views[0]) for e in (0, 50)] == [0, 50]
    assert next(free.epoch(0)).targets == {}
    assert free.require_epochs(300) is None


def test_repeating_views_is_reported_or_refused_at_once(world, cache_path):
    assert "3 cached views for 5 epochs" in (loader(world, cache_path).require_epochs(5) or "")
    assert loader(world, cache_path).require_epochs(3) is None
    strict = loader(world, cache_path, loader=CONFIG.model_copy(update={"view_schedule": "strict"}))
    assert strict.require_epochs(3) is None
    with pytest.raises(TargetsError, match="view schedule strict"):
        strict.require_epochs(4)


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_visits_every_sample_once_in_order(world, cache_path, workers):
    config = CONFIG.model_copy(update={"workers": workers})
    center = loader(world, cache_path, evaluate=("center",), batch_size=30, loader=config)
    batches = list(center.epoch(0))
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(94))
    assert all((b.views == -1).all() for b in batches)
    assert [len(b) for b in batches] == [30, 30, 30, 4]
    center.close()


def test_only_labelled_samples_on_request(tmp_path):
    half = make_world(tmp_path / "w", unlabelled=0.5)
    some = Loader(half.index, VIEWS, SIZE, 16, labelled_only=True)
    rows = torch.cat([b.rows for b in some.epoch(0)])
    assert sorted(rows.tolist()) == np.flatnonzero(np.asarray(half.index.labels) >= 0).tolist()
    none = make_world(tmp_path / "n", samples=(8,), unlabelled=1.0)
    with pytest.raises(TrainingError, match="no labelled sample"):
        Loader(none.index, VIEWS, SIZE, 16, labelled_only=True)


def test_a_limited_index_gives_its_samples_only(world, cache_path):
    index = world.index.limit(50)
    part = Loader(index, VIEWS, SIZE, 16, cache=CacheReader(cache_path, index, VIEWS))
    assert sorted(torch.cat([b.rows for b in part.epoch(0)]).tolist()) == list(range(50))


def test_missing_views_are_refused(world, tmp_path):
    make_cache(world, tmp_path / "a", views=(0,))
    make_cache(world, tmp_path / "b", views=("center",))
    with pytest.raises(TargetsError, match="view center is not cached"):
        loader(world, str(tmp_path / "a"), evaluate=("center",))
    with pytest.raises(TargetsError, match="no numbered view is cached"):
        loader(world, str(tmp_path / "b"))


def test_a_shard_that_changed_after_indexing_is_refused(tmp_path):
    world = make_world(tmp_path / "w")
    shard = sorted((world.folder / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-0001.tar.*changed since it was indexed"):
        list(Loader(world.index, VIEWS, SIZE, 16).epoch(0))


def test_a_corrupt_image_is_named(tmp_path):
    world = make_world(tmp_path / "w", samples=(5,))
    shard = sorted((world.folder / "shards").iterdir())[0]
    data = bytearray(shard.read_bytes())
    start, size = int(world.index.image_start[2]), int(world.index.image_size[2])
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    shard.write_bytes(data)
    # Looking at headers only, the indexer lets it pass; rendering does not.
    index = build_index(str(world.folder / "shards"), tmp_path / "again", check="header")
    with pytest.raises(
        ShardError, match=rf"shard-0000.tar key {world.index.key(2)} at byte {start}: .*can't be decoded"
    ):
        list(Loader(index, VIEWS, SIZE, 16).epoch(0))


def test_loader_and_cache_can_be_pickled(world, policy, policy_cache, plain):
    assert_same(list(pickle.loads(pickle.dumps(loader(world, policy_cache, policy))).epoch(1)), plain)
