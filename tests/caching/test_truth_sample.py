"""What verify looks at: some of every segment, whatever the seed, and it says which."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.shards import build_index
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.verification.replay import _choose, check_truth
from kdpipe.views import FIVE_CROP
from tests.shards.making import write_shards
from tests.stages.running import kdpipe
from tests.tiny import CLASSES, VIEWS, World, make_cache, recommit, teacher

BATCH = 64


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> World:
    """Blocks of several batches."""
    folder = tmp_path_factory.mktemp("large")
    write_shards(folder / "shards", 2, [256, 256], size=24, classes=CLASSES, seed=0)
    return World(folder, build_index(str(folder / "shards"), folder / "index", block_size=256))


@pytest.fixture(scope="module")
def six(large, tmp_path_factory) -> str:
    """Two views and five crops: six segments; not to be changed."""
    path = tmp_path_factory.mktemp("six") / "c.zarr"
    make_cache(large, path, views=(0, 1, *FIVE_CROP), batch_size=BATCH)
    return str(path)


def chosen(large: World, cache: Cache, batch: int, samples: int, seed: int) -> list[tuple[str, object, range]]:
    return [(s.name, view, rows) for s, view, rows in _choose(cache, cache.segments, large.index, batch, samples, seed)]


@pytest.mark.parametrize(("batch", "samples", "views"), [(64, 512, 512), (256, 512, 6 * 256), (64, 65, 6 * 64)])
def test_every_segment_is_looked_at(large, six, batch, samples, views):
    cache, places = Cache(Store(six)), set()
    for seed in range(40):
        batches = chosen(large, cache, batch, samples, seed)
        assert {name for name, _, _ in batches} == {s.name for s in cache.segments}
        assert {view for _, view, _ in batches} >= {*FIVE_CROP}
        assert sum(len(rows) for _, _, rows in batches) == views
        assert len(set(batches)) == len(batches)
        assert batches == chosen(large, cache, batch, samples, seed)
        places |= {(name, view, rows.start) for name, view, rows in batches}
    # Different seeds look at different places: nearly all of them by now.
    assert len(places) > 0.8 * 7 * 512 // batch


def test_a_lie_in_any_segment_is_found(large, six, tmp_path):
    shutil.copytree(six, tmp_path / "c.zarr")
    cache = Cache(Store(tmp_path / "c.zarr"))
    segment, reader = cache.segments[-1], ArrayReader(cache)
    for position, shard in enumerate(cache.shards):
        rows = reader.read(segment, shard["name"], segment.views[0], 0, shard["samples"])
        fields = {name: array[None] for name, array in rows.items()}
        fields["log_prob"] = np.ascontiguousarray(fields["log_prob"][..., ::-1])
        quality = Quality(**cache.commits[segment.name, shard["name"]]["quality"])
        recommit(cache, segment, position, fields, quality)
    cache, who = Cache(Store(tmp_path / "c.zarr")), teacher(batch_size=BATCH)
    for seed in range(3):
        report = check_truth(cache, large.index, VIEWS, who, cache.segments, samples=1, seed=seed)
        assert not report["ok"]
        assert all(f["where"].endswith(f"view {segment.views[0]}") for f in report["failures"])


def test_the_report_names_the_segments(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(0, "center"))
    make_cache(world, tmp_path / "c", views=(0,), targets=TargetsConfig(k=2), amp_dtype="bfloat16")
    asked = ("verify", tmp_path / "c", "--trust", "tests.tiny", "--samples", 8)
    names = ["000-top4-float16-v0-1", "001-top4-float16-center", "002-top2-float16-v0-1"]
    report = json.loads(kdpipe(*asked, "--json").out)
    assert report["truth"]["segments"] == {"checked": names, "present": names}
    assert f"3 of 3 segments checked: {', '.join(names)}\n" in kdpipe(*asked).out
    # One that was begun, and has nothing yet.
    for shard in cache.shards:
        Path(tmp_path / "c" / cache.segments[1].commit(shard["name"])).unlink()
    shutil.rmtree(tmp_path / "c/segments" / names[1] / "log_prob/c")
    shutil.rmtree(tmp_path / "c/segments" / names[1] / "label_log_prob/c")
    shutil.rmtree(tmp_path / "c/segments" / names[1] / "index/c")
    result = kdpipe(*asked)
    assert result.code == 0, result.out
    assert f"2 of 3 segments checked: {names[0]}, {names[2]}\n" in result.out
    assert f"not checked, without a finished task: {names[1]}\n" in result.out
