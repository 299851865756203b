"""Merging halves whose maps have calibrations of their own."""

from pathlib import Path

import pytest
import torch

from kdpipe.cache import Cache, CacheReader, CacheRequest, Store
from kdpipe.cache.tools.merge import merge
from kdpipe.errors import IdentityError
from kdpipe.targets import TargetsConfig
from kdpipe.verification import check_integrity
from tests.cache.parts import part, part_digests
from tests.caching.featured import TINY
from tests.tiny import VIEWS, World, make_cache, make_world, tree

BASIS = TargetsConfig(k=3, pooled="float16", map="int8", map_rank=2)


def halves(folder: Path, targets: TargetsConfig) -> tuple[list[World], list[str]]:
    """The world of each of two shards and of both, and a cache of view 0 of each half."""
    world = make_world(folder / "w", samples=(20, 17))
    worlds = [part(world, folder / f"w{i}", i) for i in range(2)]
    for i, half in enumerate(worlds):
        make_cache(half, folder / f"{i}.zarr", views=(0,), targets=targets, **TINY)
    return [*worlds, world], [str(folder / f"{i}.zarr") for i in range(2)]


def reads_first(url: str, world: World) -> CacheReader:
    """A reader of log-probabilities and maps from a cache's first encoding."""
    encoding = Cache(Store(url)).segments[0].encoding
    return CacheReader(url, world.index, VIEWS, request=CacheRequest(map=True), only=encoding)


def served_as_held(worlds: list[World], cache: Cache, sources: list[str]) -> None:
    """Log-probabilities and maps of all shards are read as the halves hold them."""
    reader = reads_first(cache.store.url, worlds[-1])
    assert reader.views == [0]
    for half, source in zip(worlds, sources, strict=False):
        other, [shard] = reads_first(source, half), half.index.shards
        ours, theirs = (one.read(shard.name, 0, 0, shard.samples) for one in (reader, other))
        assert ours.keys() == theirs.keys()
        now, held = (
            one.decode({name: torch.from_numpy(rows) for name, rows in fields.items()})
            for one, fields in ((reader, ours), (other, theirs))
        )
        assert torch.equal(now.log_probs, held.log_probs)
        assert torch.equal(now.map, held.map)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_merged_maps_without_a_basis_have_the_first_sources_statistics(tmp_path, dtype):
    worlds, sources = halves(tmp_path, TargetsConfig(k=3, map=dtype))
    # The same map in another dtype beside, whose statistics are of the second source alone.
    other = TargetsConfig(kind="none", map="float16")
    make_cache(worlds[1], tmp_path / "1.zarr", views=(0,), targets=other, **TINY)
    first, second = (Cache(Store(source)) for source in sources)
    assert not set(first.parts) & set(second.parts)
    cache, _ = merge(str(tmp_path / "c"), sources)
    assert [len(cache.committed(s)) for s in cache.segments] == [2, 1]
    assert part_digests(cache) == part_digests(first)
    assert check_integrity(cache.store)[0] == []
    served_as_held(worlds, cache, sources)
    once = tree(tmp_path / "c")
    _, report = merge(str(tmp_path / "c"), sources)
    assert (report.tasks, report.bytes, tree(tmp_path / "c")) == (0, 0, once)
    # Whoever adds views takes the calibration that is there.
    now = make_cache(worlds[2], tmp_path / "c", views=(0, 1), targets=TargetsConfig(k=3, map=dtype), **TINY)
    assert part_digests(now) == part_digests(first)
    assert now.views() == [0, 1]


def test_two_bases_are_not_merged(tmp_path):
    _, sources = halves(tmp_path, BASIS)
    names = [next(p for p in Cache(Store(s)).parts if p.startswith("calibration-")) for s in sources]
    message = rf"1.zarr: its top3-.*another basis than that of .*0.zarr; found {names[1]}; allowed: {names[0]}"
    with pytest.raises(IdentityError, match=message + r"\. .*kdpipe cache-teacher --calibration-from .*0.zarr"):
        merge(str(tmp_path / "c"), sources)
    assert not (tmp_path / "c").exists()
