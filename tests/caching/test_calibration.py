"""Calibrations that are lost and made again, and those that are taken from another cache."""

from pathlib import Path

import pytest

from kdpipe.cache import Cache, CacheReader, CacheRequest, Store
from kdpipe.cache.layout import part_file, part_record
from kdpipe.cache.tools.drop_views import drop_views
from kdpipe.cache.tools.merge import merge
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import CacheError, ConfigError, CorruptionError, IdentityError
from kdpipe.targets import TargetsConfig
from kdpipe.verification import check_integrity
from tests.cache.parts import part, part_digests
from tests.cache.test_merged_maps import served_as_held
from tests.caching.featured import TINY
from tests.tiny import VIEWS, World, make_cache, make_world, teacher, tree

MAP = TargetsConfig(kind="none", map="int8", map_rank=3)
BOTH = TargetsConfig(k=3, map="int8", map_rank=2)


def lose(folder: Path) -> str:
    """Delete a cache's only calibration; its name."""
    [name] = Cache(Store(folder)).parts
    for file in (part_record(name), part_file(name)):
        (folder / file).unlink()
    return name


def cached(
    world: World, out: Path, origin: Path | str | None, targets=BOTH, views=(0,), config=VIEWS, **changes
) -> Cache:
    """A cache whose map's calibration comes from another."""
    caching = CachingConfig(render_threads=1, calibration_from=origin and str(origin))
    who = teacher(**TINY | changes)
    return cache_views(str(out), world.index, config, who, targets, list(views), caching=caching)[0]


class TestLost:
    @pytest.mark.parametrize(
        ("first", "repeated"),
        [((0,), (0, 1)), ((0, 1, 2), (0,)), ((2, 0, 1), (5,)), ((0, 1, 2, 4), (1, 2)), (("top-left", "center"), (0,))],
        ids=str,
    )
    def test_whatever_the_views_of_the_repeated_command(self, world, tmp_path, monkeypatch, first, repeated):
        monkeypatch.setattr("kdpipe.caching.segments._TASK_BYTES", 10_000)  # the first views take several segments
        make_cache(world, tmp_path / "c", views=first, targets=MAP, **TINY)
        name, before = lose(tmp_path / "c"), tree(tmp_path / "c")
        cache = make_cache(world, tmp_path / "c", views=repeated, targets=MAP, **TINY)
        assert name in cache.parts
        assert {s.encoding.map.calibration for s in cache.segments} == {name}
        assert before.items() <= tree(tmp_path / "c").items()
        assert check_integrity(cache.store)[0] == []

    def test_of_views_that_were_dropped_only_the_user_knows(self, world, tmp_path):
        make_cache(world, tmp_path / "c", views=(0, 1, 2), targets=MAP, **TINY)
        drop_views(Store(tmp_path / "c"), [1])
        name = lose(tmp_path / "c")
        before = tree(tmp_path / "c")
        message = r"a calibration was lost, .* Repeat the command with the --views that the cache was first made"
        with pytest.raises(CacheError, match=f"{name}: {message}"):
            make_cache(world, tmp_path / "c", views=(0,), targets=MAP, **TINY)
        assert before.items() <= tree(tmp_path / "c").items()
        cache = make_cache(world, tmp_path / "c", views=(0, 1, 2), targets=MAP, **TINY)
        # Those that came out otherwise are leftovers, which the next run deletes.
        assert name in cache.parts
        assert list(make_cache(world, tmp_path / "c", views=(0,), targets=MAP, **TINY).parts) == [name]

    def test_it_may_be_taken_from_a_copy(self, world, tmp_path):
        origin = make_cache(world, tmp_path / "a", views=(0, 1), targets=BOTH, **TINY)
        cached(world, tmp_path / "c", tmp_path / "a", views=(5,))
        assert list(origin.parts) == [lose(tmp_path / "c")]
        with pytest.raises(CacheError, match="lost"):
            cached(world, tmp_path / "c", None, views=(5,))
        assert cached(world, tmp_path / "c", tmp_path / "a", views=(5,)).parts == origin.parts


class TestBorrowed:
    @pytest.fixture
    def halves(self, tmp_path) -> tuple[list[World], Path]:
        """The world of each of two shards and of both, and a cache of the first."""
        world = make_world(tmp_path / "w", samples=(20, 17))
        worlds = [part(world, tmp_path / f"w{i}", i) for i in range(2)]
        make_cache(worlds[0], tmp_path / "0.zarr", views=(0,), targets=BOTH, **TINY)
        return [*worlds, world], tmp_path / "0.zarr"

    def test_halves_with_one_basis_merge(self, halves, tmp_path):
        worlds, first = halves
        second = cached(worlds[1], tmp_path / "1.zarr", first)
        assert part_digests(second) == part_digests(Cache(Store(first)))
        cached(worlds[1], tmp_path / "1.zarr", first)
        assert check_integrity(second.store)[0] == []
        sources = [str(first), str(tmp_path / "1.zarr")]
        cache, _ = merge(str(tmp_path / "c"), sources)
        assert len(cache.segments) == 1
        assert check_integrity(cache.store)[0] == []
        served_as_held(worlds, cache, sources)
        reader = CacheReader(cache.store.url, worlds[2].index, VIEWS, request=CacheRequest(map=True))
        assert reader.calibration().components.shape[0] == 2

    def test_another_teacher_or_policy_is_refused_by_name(self, halves, tmp_path):
        worlds, first = halves
        for changes, message in [
            ({"config": VIEWS.model_copy(update={"seed": 4})}, r"0.zarr: .*another views.seed; found 4"),
            ({"model_kwargs": {"seed": 1}}, r"0.zarr: .*another teacher"),
        ]:
            with pytest.raises(IdentityError, match=message):
                cached(worlds[1], tmp_path / "1.zarr", first, **changes)
        assert not (tmp_path / "1.zarr").exists()

    def test_what_cannot_be_had_is_refused_before_there_is_a_cache(self, halves, tmp_path):
        worlds, first = halves
        for targets, kind, message in [
            (TargetsConfig(k=3), ConfigError, "there is no map to calibrate. Keep one with --feature-map"),
            (MAP, CacheError, r"no calibration of such a map; found map-int8-r2; allowed: rank 3 of shape \(4, 4, 5\)"),
        ]:
            with pytest.raises(kind, match=message):
                cached(worlds[1], tmp_path / "1.zarr", first, targets)
        [name] = Cache(Store(first)).parts
        (first / part_file(name)).write_bytes(b"nonsense")
        with pytest.raises(CorruptionError, match="a part of the cache is damaged"):
            cached(worlds[1], tmp_path / "1.zarr", first)
        lose(first)
        with pytest.raises(CacheError, match=f"the cache has no part {name}"):
            cached(worlds[1], tmp_path / "1.zarr", first)
        assert not (tmp_path / "1.zarr").exists()

    def test_a_cache_with_its_own_is_left_alone(self, halves, tmp_path):
        worlds, first = halves
        [own] = make_cache(worlds[1], tmp_path / "1.zarr", views=(0,), targets=BOTH, **TINY).parts
        before, [name] = tree(tmp_path / "1.zarr"), Cache(Store(first)).parts
        message = rf"1.zarr: the cache has another calibration of such a map; found {own}; allowed: {name} of .*0.zarr"
        with pytest.raises(CacheError, match=message):
            cached(worlds[1], tmp_path / "1.zarr", first, views=(0, 1))
        assert tree(tmp_path / "1.zarr") == before
