"""Finished tasks are not lost with their segment's record: nothing is deleted, and the file is named."""

import shutil
from dataclasses import replace

import pytest

from kdpipe.cache import CacheReader, Store, add_segment
from kdpipe.cache.tools.drop_views import drop_views
from kdpipe.cache.tools.gc import remove_orphans
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.verification import check_integrity
from tests.stages.running import refused
from tests.tiny import make_cache, tree

NAME = "000-top4-float16-v0-2"


@pytest.fixture
def whole(world, tmp_path) -> dict[str, bytes]:
    make_cache(world, tmp_path / "c", views=(0, 1))
    make_cache(world, tmp_path / "c", views=("center",))
    whole = tree(tmp_path / "c")
    (tmp_path / "c/commits" / NAME / "segment.json").rename(tmp_path / "segment.json")
    return whole


def test_nothing_is_done_and_nothing_is_deleted(world, tmp_path, whole):
    left, said = tree(tmp_path / "c"), rf"{NAME}/segment.json: .* is missing; found 3 finished tasks"
    works = [
        lambda: make_cache(world, tmp_path / "c", views=(0, 1)),
        lambda: make_cache(world, tmp_path / "c", views=(7,)),
        lambda: CacheReader(str(tmp_path / "c"), world.index),
        lambda: drop_views(Store(tmp_path / "c"), ["center"]),
        lambda: remove_orphans(Store(tmp_path / "c")),
    ]
    for work in works:
        with pytest.raises(CorruptionError, match=said):
            work()
    assert "segment.json: a segment's record is missing" in refused("cache", "gc", tmp_path / "c", "--yes")
    assert tree(tmp_path / "c") == left


def test_verify_calls_it_missing_and_its_arrays_not_unexpected(tmp_path, whole):
    missing = {"where": f"commits/{NAME}/segment.json", "what": "missing: 3 finished tasks need it"}
    assert check_integrity(Store(tmp_path / "c"))[0] == [missing]
    chunk = f"segments/{NAME}/log_prob/c/0/2/0/0"
    (tmp_path / "c" / chunk).unlink()
    assert [p["where"] for p in check_integrity(Store(tmp_path / "c"))[0]] == [chunk, missing["where"]]


def test_restored_it_goes_on(world, tmp_path, whole):
    (tmp_path / "segment.json").rename(tmp_path / "c/commits" / NAME / "segment.json")
    assert make_cache(world, tmp_path / "c", views=(0, 1)).views() == [0, 1, "center"]
    assert tree(tmp_path / "c") == whole


def test_with_its_tasks_records_deleted_too_it_is_done_again(world, tmp_path, whole):
    shutil.rmtree(tmp_path / "c/commits" / NAME)
    cache = make_cache(world, tmp_path / "c", views=(0, 1))
    assert check_integrity(cache.store)[0] == []
    assert [s.views for s in cache.segments] == [("center",), (0, 1)]


def test_a_segment_that_another_run_adds_is_not_made_anew(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(0, 1))
    whole = tree(tmp_path / "c")
    segment = cache.segments[0]
    add_segment(cache, segment)
    assert tree(tmp_path / "c") == whole
    with pytest.raises(CacheError, match=f"records of segment {NAME} already"):
        add_segment(cache, replace(segment, numerics={**segment.numerics, "amp_dtype": "bfloat16"}))
    assert tree(tmp_path / "c") == whole
