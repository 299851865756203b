"""A record says which targets are meant, and readers keep to it whatever else the store gets."""

import json

import pytest

from kdpipe.cache import Cache, Store
from kdpipe.cache.manifest import CacheRecord, open_reader, place
from kdpipe.cache.select import CacheRequest
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import CacheError, IdentityError, TargetsError
from kdpipe.shards import Index
from kdpipe.targets import Encoding, TargetsConfig
from tests.trainer import tiny

TARGETS = {"kind": "topk", "k": 2, "dtype": "float16"}


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return tiny.make_index(tmp_path_factory.mktemp("record"))


def cache(folder, index, views, **targets) -> Cache:
    config, url = TargetsConfig(**{**TARGETS, **targets}), str(folder / "cache.zarr")
    return cache_views(
        url, index, tiny.VIEWS, tiny.make_teacher(), config, views, caching=CachingConfig(render_threads=1)
    )[0]


def record(made: Cache, views, **targets) -> CacheRecord:
    return CacheRecord.of(made, Encoding.of(TargetsConfig(**{**TARGETS, **targets}), tiny.CLASSES), views)


def test_equal_caches_have_equal_records_but_for_the_place(tmp_path, index):
    first, second = (record(cache(tmp_path / name, index, [0, 1]), [0, 1]) for name in ("a", "b"))
    assert first.cache != second.cache
    assert {**vars(first), "cache": ""} == {**vars(second), "cache": ""}


def test_more_in_the_store_changes_neither_record_nor_what_is_read(tmp_path, index):
    path = str(tmp_path / "cache.json")
    before = record(cache(tmp_path, index, [0, 1]), [0, 1])
    before.write(path)
    cache(tmp_path, index, [2, 3, 4])
    more = cache(tmp_path, index, [0, 1, 2, 3, 4, 5], dtype="float32")
    assert record(more, [0, 1]) == before
    reader = open_reader(path, index, tiny.VIEWS)
    assert reader.views == [0, 1]
    assert reader.encoding.name == "top2-float16"
    assert open_reader(before.cache, index, tiny.VIEWS).views == [0, 1, 2, 3, 4, 5]


def test_part_of_a_segment_is_another_record(tmp_path, index):
    made = cache(tmp_path, index, [0, 1, 2])
    record(made, [0, 2]).write(str(tmp_path / "part.json"))
    assert record(made, [0, 2]) != record(made, [0, 1, 2])
    assert open_reader(str(tmp_path / "part.json"), index, tiny.VIEWS).views == [0, 2]


def test_a_store_that_lost_a_task_is_refused(tmp_path, index):
    path = str(tmp_path / "cache.json")
    made = cache(tmp_path, index, [0])
    record(made, [0]).write(path)
    cache(tmp_path, index, [1])
    lost = next((tmp_path / "cache.zarr" / "commits").glob("*v0-1/*.tar.json"))
    lost.unlink()
    with pytest.raises(IdentityError, match="other targets than its record names"):
        open_reader(path, index, tiny.VIEWS)


def test_a_record_of_the_top_k_does_not_serve_a_dense_loss(tmp_path, index):
    path = str(tmp_path / "cache.json")
    record(cache(tmp_path, index, [0]), [0]).write(path)
    cache(tmp_path, index, [0], kind="dense")
    with pytest.raises(TargetsError, match="top2-float16"):
        open_reader(path, index, tiny.VIEWS, request=CacheRequest(dense=True))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"cache": "x"}'])
def test_what_is_no_record_is_refused(tmp_path, index, text):
    path = tmp_path / "cache.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CacheError, match="no record of a cache"):
        open_reader(str(path), index)


def test_the_identity_fills_the_place(tmp_path, index):
    identity = Cache(Store(cache(tmp_path, index, [0]).store.url)).identity
    again = json.loads(json.dumps(identity))
    assert place("caches/{identity}.zarr", identity) == place("caches/{identity}.zarr", again)
    assert place("caches/{identity}.zarr", identity) != place("caches/{identity}.zarr", {**identity, "render_size": 1})
    assert place("runs/cache.zarr", identity) == "runs/cache.zarr"
