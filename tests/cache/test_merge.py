"""A merged cache holds what its sources hold, as if it had been made at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import Cache, CacheReader, Store, read_canaries
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.tools.merge import merge
from kdpipe.caching import check_canaries
from kdpipe.errors import CacheError, ConfigError, CorruptionError, IdentityError
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.verification import check_integrity
from tests.cache.parts import part, survives_kills, targets_tree
from tests.tiny import RECIPE, VIEWS, World, make_cache, make_world, network, recommit, tree

DENSE = TargetsConfig(kind="dense")


def other_network(num_classes: int = 7):
    """A teacher with other weights."""
    return network(num_classes, seed=1)


@pytest.fixture(scope="module")
def parts(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    """The world's first and last shard, and the middle one; the last alone would be padded to fewer rows."""
    folder = tmp_path_factory.mktemp("parts")
    return [part(world, folder / "a", 2), part(world, folder / "b", 0, 1)]


@pytest.fixture(scope="module")
def halves(parts: list[World], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A cache of each part; not to be changed."""
    folder = tmp_path_factory.mktemp("halves")
    for i, p in enumerate(parts):
        make_cache(p, folder / f"{i}.zarr")
    return [str(folder / f"{i}.zarr") for i in range(2)]


def test_disjoint_shards_give_the_bytes_of_a_cache_made_at_once(world, cache_path, halves, tmp_path):
    cache, report = merge(str(tmp_path / "c"), halves)
    assert targets_tree(tmp_path / "c") == targets_tree(Path(cache_path))
    assert (report.tasks, report.skipped) == (6, 0)
    assert check_integrity(cache.store)[0] == []
    assert cache.root_digest() == Cache(Store(cache_path)).root_digest()
    # The cache made at once is what it would go on from.
    again = make_cache(world, tmp_path / "c")
    assert again.root_digest() == cache.root_digest()


def test_its_canaries_are_of_all_sources_and_its_last_run_covers_all_samples(world, halves, tmp_path):
    cache, _ = merge(str(tmp_path / "c"), halves)
    canaries = read_canaries(cache)
    assert len(canaries) == 64
    assert {c.shard for c in canaries} == {s.name for s in world.index.shards}
    assert check_canaries(cache, world.index, VIEWS, 0)["views"] == 64
    runs = read_provenance(cache.store)
    assert len(runs) == 3
    assert (runs[-1]["samples"], runs[-1]["merged"]) == (94, halves)


def test_the_order_of_the_sources_does_not_matter(halves, tmp_path):
    merge(str(tmp_path / "a"), halves)
    merge(str(tmp_path / "b"), halves[::-1])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("config", [VIEWS, RECIPE])
def test_views_and_encodings_of_the_same_shards(world, tmp_path, config):
    make_cache(world, tmp_path / "a", views=(0, 1), config=config)
    make_cache(world, tmp_path / "b", views=(2, "center"), config=config)
    make_cache(world, tmp_path / "d", views=(0,), targets=DENSE, config=config)
    cache, _ = merge(str(tmp_path / "c"), [str(tmp_path / n) for n in "abd"])
    assert [s.name for s in cache.segments] == [
        "000-top4-float16-v0-2", "001-top4-float16-v2-3", "002-top4-float16-center", "003-dense-float16-v0-1"
    ]  # fmt: skip
    assert cache.views() == [0, 1, 2, "center"]
    # The same steps in one cache.
    make_cache(world, tmp_path / "once", views=(0, 1), config=config)
    make_cache(world, tmp_path / "once", views=(2, "center"), config=config)
    make_cache(world, tmp_path / "once", views=(0,), targets=DENSE, config=config)
    assert targets_tree(tmp_path / "c") == targets_tree(tmp_path / "once")


def test_views_that_were_cached_in_other_portions_are_cut_to_fit(world, cache_path, parts, tmp_path):
    make_cache(parts[0], tmp_path / "a", views=(0, 1, 2))
    make_cache(parts[1], tmp_path / "b", views=(0, 1))
    make_cache(parts[1], tmp_path / "b", views=(0, 1, 2))
    cache, _ = merge(str(tmp_path / "c"), [str(tmp_path / "a"), str(tmp_path / "b")])
    assert [s.views for s in cache.segments] == [(0, 1), (2,)]
    assert check_integrity(cache.store)[0] == []
    ours, theirs = (CacheReader(str(p), world.index, VIEWS) for p in (tmp_path / "c", cache_path))
    for shard in world.index.shards:
        for view in (0, 1, 2):
            a, b = (r.read(shard.name, view, 0, shard.samples) for r in (ours, theirs))
            assert all(np.array_equal(a[name], b[name], equal_nan=name != "index") for name in a)


def test_what_is_unfinished_is_merged_and_added_later(world, halves, tmp_path):
    shutil.copytree(halves[1], tmp_path / "b")
    record = tmp_path / "b/commits/000-top4-float16-v0-3/shard-0001.tar.json"
    whole = record.read_bytes()
    record.unlink()
    sources = [halves[0], str(tmp_path / "b")]
    cache, _ = merge(str(tmp_path / "c"), sources)
    assert cache.views() == ["center"]
    record.write_bytes(whole)
    cache, report = merge(str(tmp_path / "c"), sources)
    assert (report.tasks, report.skipped) == (1, 5)
    merge(str(tmp_path / "once"), halves)
    assert tree(tmp_path / "c") == tree(tmp_path / "once")


def test_urls(halves, tmp_path):
    import fsspec

    cache, _ = merge("memory://kdpipe-merge/c.zarr", halves)
    merge(str(tmp_path / "c"), halves)
    assert cache.root_digest() == Cache(Store(tmp_path / "c")).root_digest()
    assert check_integrity(cache.store)[0] == []
    fsspec.filesystem("memory").rm("/kdpipe-merge", recursive=True)


def test_whatever_else_differs_is_refused_by_name(world, parts, halves, tmp_path):
    a, out = halves[0], tmp_path / "out"
    make_cache(parts[1], tmp_path / "seed", views=(0,), config=VIEWS.model_copy(update={"seed": 4}))
    make_cache(parts[1], tmp_path / "weights", views=(0,), model="tests.cache.test_merge:other_network")
    make_cache(parts[1], tmp_path / "batch", views=(0,), batch_size=4)
    other = make_world(tmp_path / "other", seed=5)
    make_cache(other, tmp_path / "pixels", views=(0,))
    for name, field in [
        ("seed", r"made with another views.seed than .*; found 4; allowed: 3"),
        ("weights", r"made with another teacher.model than"),
        ("batch", r"another numerics of view 0 \(top4-float16\): batch_size than .*found 4; allowed: 8"),
        ("pixels", r"another shards.shard-0002.tar.content than"),
    ]:
        with pytest.raises(IdentityError, match=field):
            merge(str(out), [a, str(tmp_path / name)])
        assert not out.exists()


def test_places_that_are_taken_are_refused(world, halves, cache_path, tmp_path):
    with pytest.raises(ConfigError, match="one of its sources"):
        merge(f"{halves[0]}/", halves)
    shutil.copytree(cache_path, tmp_path / "c")
    make_cache(world, tmp_path / "c", views=(7,))
    with pytest.raises(CacheError, match=r"another cache .* found 002-top4-float16-v7-8"):
        merge(str(tmp_path / "c"), halves)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match=r"not empty and not a cache; found thesis.tex"):
        merge(str(tmp_path / "thesis"), halves)
    with pytest.raises(CacheError, match="no cache here"):
        merge(str(tmp_path / "new"), [halves[0], str(tmp_path / "absent")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("which", [0, 1])  # rewritten for its padding; copied
def test_a_tampered_source_is_refused_and_named(halves, tmp_path, which):
    sources = list(halves)
    sources[which] = str(tmp_path / "bad.zarr")
    shutil.copytree(halves[which], tmp_path / "bad.zarr")
    chunk = tmp_path / "bad.zarr/segments/001-top4-float16-center/index/c/0/0/0/0"
    intact = chunk.read_bytes()
    chunk.write_bytes(intact[:5] + bytes([intact[5] ^ 4]) + intact[6:])
    with pytest.raises(CorruptionError, match=r"bad.zarr/segments/001-top4-float16-center/index/c/0/0/0/0"):
        merge(str(tmp_path / "c"), sources)
    # What it has is sound, and it goes on when the source is mended.
    assert {p["what"].split(":")[0] for p in check_integrity(Store(tmp_path / "c"))[0]} <= {"unexpected"}
    chunk.write_bytes(intact)
    cache, _ = merge(str(tmp_path / "c"), sources)
    assert check_integrity(cache.store)[0] == []
    record = tmp_path / "bad.zarr/commits/001-top4-float16-center/segment.json"
    record.write_bytes(record.read_bytes().replace(b"float16", b"float32", 1))
    with pytest.raises(CorruptionError, match=r"bad.zarr/commits/001.*segment.json"):
        merge(str(tmp_path / "d"), sources)
    assert not (tmp_path / "d").exists()


def test_two_values_of_one_task_are_refused(world, cache_path, tmp_path):
    make_cache(world, tmp_path / "b", model="tests.tiny:network")
    merge(str(tmp_path / "c"), [cache_path, str(tmp_path / "b")])
    cache = Cache(Store(tmp_path / "b"))
    segment = cache.segments[1]
    reader = CacheReader(cache_path, world.index, VIEWS)
    fields = {name: a[None, ::-1] for name, a in reader.read("shard-0002.tar", "center", 0, 21).items()}
    recommit(cache, segment, 2, fields, Quality())
    with pytest.raises(CacheError, match=r"other values of top4-float16 of shard-0002.tar than"):
        merge(str(tmp_path / "d"), [cache_path, str(tmp_path / "b")])


def merging(out: str, *sources: str) -> None:
    merge(out, sources)


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_merge_survives_a_kill_at_any_write(tmp_path, every, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    world = make_world(tmp_path / "w", samples=(20, 9))
    for i in range(2):
        make_cache(part(world, tmp_path / f"w{i}", i), tmp_path / f"{i}.zarr", views=(0, "center"), targets=DENSE)
    sources = [str(tmp_path / f"{i}.zarr") for i in range(2)]
    assert survives_kills(every, None, tmp_path / "c", merging, *sources) > 30
