"""Two runs that begin one cache at the same moment in a store without locks and without conditional puts.

No task counts for another's segment, and what can't be told apart ends in an error.
"""

import uuid
from collections.abc import Callable, Iterator

import fsspec
import pytest

import kdpipe.cache.store as stores
import kdpipe.caching.run as run
from kdpipe.cache import Cache, Store, add_segment
from kdpipe.cache.sealed import read_record, seal
from kdpipe.cache.tools.merge import merge
from kdpipe.cache.tools.transfer import transfer
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import CacheError
from kdpipe.targets import TargetsConfig
from kdpipe.verification import check_integrity, check_truth
from tests.caching.featured import TINY
from tests.tiny import VIEWS, World, teacher

MAP = TargetsConfig(kind="none", map="float32", map_rank=3)


@pytest.fixture
def url() -> Iterator[str]:
    name = f"kdpipe-{uuid.uuid4().hex}"
    yield f"memory://{name}/c.zarr"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def cached(world: World, url: str, **changes: object) -> tuple[Cache, run.CachingReport]:
    caching = CachingConfig(render_threads=1)
    return cache_views(url, world.index, VIEWS, teacher(**TINY | changes), MAP, [0, 1], caching=caching)


@pytest.fixture(autouse=True)
def no_conditional_puts(monkeypatch):
    monkeypatch.setattr(stores, "_creates", lambda _: False)


def before(monkeypatch, name: str, work: Callable[[], object]) -> None:
    """Do the work once, after it was found that a file with this end isn't there and before it is written."""
    real, begun = Store.put, []

    def first(self, path, data):
        if not begun and path.endswith(name):
            begun.append(True)
            work()
        return real(self, path, data)

    monkeypatch.setattr(Store, "put", first)


def others_record(cache: Cache) -> None:
    """Put what another run would that uses other numerics."""
    [segment] = cache.segments
    said = read_record(cache.store, segment.record)
    said["segment"]["numerics"]["amp_dtype"] = "bfloat16"
    cache.store.put(segment.record, seal(said))


def test_tasks_of_a_run_whose_segment_was_replaced_are_done_again(world, url, monkeypatch):
    before(monkeypatch, "/segment.json", lambda: cached(world, url, amp_dtype="bfloat16"))
    cache, report = cached(world, url)
    assert (report.tasks, report.skipped) == (3, 0)
    assert [s.numerics["amp_dtype"] for s in cache.segments] == ["float32"]
    assert check_integrity(cache.store)[0] == []
    assert check_truth(Cache(cache.store), world.index, VIEWS, teacher(**TINY), cache.segments)["ok"]


@pytest.mark.parametrize("when", ["v0-2/zarr.json", "map/zarr.json"])
def test_a_run_that_comes_first_keeps_what_it_did(world, url, monkeypatch, when):
    with monkeypatch.context() as m:
        before(m, when, lambda: cached(world, url, amp_dtype="bfloat16"))
        with pytest.raises(CacheError, match=r"there are records of segment 000-map-float32-r3-v0-2 already"):
            cached(world, url)
    cache = Cache(Store(url))
    assert check_integrity(cache.store)[0] == []
    assert len(cache.commits) == 3
    now, report = cached(world, url, amp_dtype="bfloat16")
    assert (report.tasks, now.root_digest()) == (0, cache.root_digest())


def test_a_run_whose_segment_was_replaced_writes_no_more(world, url, monkeypatch):
    write = run.write_provenance

    def late(store, entry):
        write(store, entry)
        others_record(Cache(store))

    monkeypatch.setattr(run, "write_provenance", late)
    with pytest.raises(CacheError, match=r"another run has added another segment of this name .* Let that run end"):
        cached(world, url)
    store = Store(url)
    assert Cache(store).commits == {}
    assert not [name for name in store.files("segments") if "/c/" in name]


def test_a_task_of_another_segment_is_reported_and_done_again(world, tmp_path):
    cache, _ = cached(world, str(tmp_path / "c"))
    [segment] = cache.segments
    whole, name = cache.root_digest(), segment.commit("shard-0001.tar")
    record = read_record(cache.store, name)
    assert record["segment_digest"] == segment.digest
    cache.store.put(name, seal({**record, "segment_digest": "0" * 64}))
    [problem] = check_integrity(cache.store)[0]
    assert problem["where"] == name
    assert "of another segment of this name" in problem["what"]
    assert Cache(cache.store).committed(segment) == ["shard-0000.tar", "shard-0002.tar"]
    cache, report = cached(world, str(tmp_path / "c"))
    assert (report.tasks, report.skipped, cache.root_digest()) == (1, 2, whole)


def test_moved_tasks_are_reported_with_their_place(world, tmp_path):
    for name, views in (("a", [0, 1]), ("b", [2])):
        who, caching = teacher(**TINY), CachingConfig(render_threads=1)
        cache_views(str(tmp_path / name), world.index, VIEWS, who, TargetsConfig(k=4), views, caching=caching)
    cut, _ = transfer(str(tmp_path / "a"), str(tmp_path / "cut"), [1])
    merged, _ = merge(str(tmp_path / "m"), [str(tmp_path / "a"), str(tmp_path / "b")])
    for cache, count in ((cut, 3), (merged, 6)):
        now = Cache(cache.store)
        assert len(now.commits) == count
        assert check_integrity(cache.store)[0] == []
        own = {segment.name: segment.digest for segment in now.segments}
        assert all(record["segment_digest"] == own[name] for (name, _), record in now.commits.items())


def test_what_was_committed_stays_when_arrays_are_made_again(world, url, monkeypatch):
    """The run that comes second has looked for records before the first one wrote any."""
    cache, _ = cached(world, url)
    [segment], before = cache.segments, {name: cache.store.read(name) for name in cache.store.files()}
    add_segment(cache, segment)
    assert {name: cache.store.read(name) for name in cache.store.files()} == before


def test_two_runs_that_create_it_at_the_same_moment(world, url, monkeypatch):
    """The later one's record stays, and is of files that the other has put there: nothing opens."""
    with monkeypatch.context() as m:
        before(m, "commits/store.json", lambda: cached(world, url, model_kwargs={"seed": 1}))
        with pytest.raises(CacheError, match=r"another cache|is damaged"):
            cached(world, url)
    with pytest.raises(CacheError):
        Cache(Store(url))
