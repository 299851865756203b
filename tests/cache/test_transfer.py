"""Copies of caches and of parts of them: the same bytes, checked on the way, and no more of them than asked for."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from kdpipe.cache import Cache, CacheReader, Segment, Store, add_segment
from kdpipe.cache.tools.copy import CopySource
from kdpipe.cache.tools.transfer import transfer
from kdpipe.errors import CacheError, ConfigError, CorruptionError, IdentityError
from kdpipe.verification import check_integrity
from tests.cache.parts import part, survives_kills
from tests.tiny import VIEWS, make_cache, tree


@pytest.fixture
def url():
    """A place behind fsspec."""
    yield "memory://kdpipe-transfer/c.zarr"
    fs = fsspec.filesystem("memory")
    if fs.exists("/kdpipe-transfer"):
        fs.rm("/kdpipe-transfer", recursive=True)


def files_at(place: str) -> dict[str, bytes]:
    store = Store(place)
    return {name: store.read(name) for name in store.files()}


def test_there_and_back_is_the_same_cache(cache_path, url, tmp_path):
    _, there = transfer(cache_path, url)
    assert files_at(url) == tree(Path(cache_path), ())
    _, back = transfer(url, str(tmp_path / "c"))
    assert tree(tmp_path / "c", ()) == tree(Path(cache_path), ())
    assert (there.tasks, back.tasks, there.bytes) == (6, 6, back.bytes)
    before = files_at(url)
    _, again = transfer(cache_path, url)
    assert (again.tasks, again.skipped, again.bytes) == (0, 6, 0)
    assert files_at(url) == before


def test_some_shards_are_a_usable_cache(world, cache_path, url, tmp_path):
    cache, report = transfer(cache_path, url, ["center"], "shard-000[02].*")
    assert (report.tasks, report.absent) == (2, 0)
    assert cache.identity == Cache(Store(cache_path)).identity
    assert cache.views() == []
    few = part(world, tmp_path / "few", 0, 2)
    assert CacheReader(url, few.index, VIEWS).views == ["center"]
    assert check_integrity(Store(url))[0] == []
    # The rest is added.
    _, more = transfer(cache_path, url)
    assert (more.tasks, more.skipped) == (4, 2)
    assert files_at(url) == tree(Path(cache_path), ())


def test_some_views_of_a_segment(world, cache_path, url, tmp_path):
    cache, _ = transfer(cache_path, url, [0, 2])
    assert [s.views for s in cache.segments] == [(0,), (2,)]
    assert check_integrity(cache.store)[0] == []
    ours, theirs = (CacheReader(p, world.index, VIEWS) for p in (url, cache_path))
    for view in (0, 2):
        a, b = (r.read("shard-0001.tar", view, 0, 33) for r in (ours, theirs))
        assert all(np.array_equal(a[name], b[name], equal_nan=name != "index") for name in a)
    # The views between are added, and nothing twice.
    cache, report = transfer(cache_path, url, [0, 1, 2])
    assert (report.tasks, report.skipped) == (3, 6)
    assert sorted(s.views for s in cache.segments) == [(0,), (1,), (2,)]


def test_only_the_wanted_part_of_a_file_is_read(cache_path, tmp_path, monkeypatch):
    taken = []

    def counted(name):
        original = getattr(Store, name)

        def wrapped(self, file, *args):
            data = original(self, file, *args)
            if file.startswith("segments") and "/c/" in file and self.url == cache_path:
                taken.append(len(data))
            return data

        monkeypatch.setattr(Store, name, wrapped)

    counted("read")
    counted("read_range")
    cache = Cache(Store(cache_path))
    transfer(cache_path, str(tmp_path / "c"), [1])
    assert sum(taken) < 0.7 * cache.bytes(cache.segments[0])


def test_tasks_that_the_source_has_not_finished_are_counted(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "a")
    (tmp_path / "a/commits/000-top4-float16-v0-3/shard-0001.tar.json").unlink()
    cache, report = transfer(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (report.tasks, report.absent) == (5, 1)
    assert check_integrity(cache.store)[0] == []


def test_a_source_with_an_interrupted_drop_can_be_copied_again(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "a")
    # What a drop of view 2 leaves when it is killed before it deletes.
    cache = Cache(Store(tmp_path / "a"))
    old = cache.segments[0]
    add_segment(cache, new := Segment(2, old.encoding, (0, 1), old.numerics))
    CopySource(cache).copy(old, "shard-0000.tar", cache, new)
    _, first = transfer(str(tmp_path / "a"), str(tmp_path / "b"))
    _, again = transfer(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (first.tasks, again.tasks) == (7, 0)
    assert tree(tmp_path / "b") == tree(tmp_path / "a")


def test_files_that_are_there_already_are_not_sent_again(cache_path, tmp_path, monkeypatch):
    transfer(cache_path, str(tmp_path / "c"))
    (tmp_path / "c/commits/000-top4-float16-v0-3/shard-0001.tar.json").unlink()
    put: list[str] = []
    for way in ("put", "_create"):
        original = getattr(Store, way)
        monkeypatch.setattr(Store, way, lambda s, name, data, f=original: (put.append(name), f(s, name, data))[1])
    transfer(cache_path, str(tmp_path / "c"))
    assert put == ["commits/000-top4-float16-v0-3/shard-0001.tar.json"]
    assert tree(tmp_path / "c") == tree(Path(cache_path))


def test_a_tampered_source_is_refused_and_named(cache_path, url, tmp_path):
    shutil.copytree(cache_path, tmp_path / "bad")
    chunk = tmp_path / "bad/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 16
    chunk.write_bytes(data)
    for views in (None, [0]):
        with pytest.raises(CorruptionError, match=r"bad/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"):
            transfer(str(tmp_path / "bad"), url, views)
        committed = Cache(Store(url)).commits
        assert not any(shard == "shard-0001.tar" and "v0" in segment for segment, shard in committed)


def test_what_does_not_exist_or_does_not_fit_is_refused_in_words(world, cache_path, tmp_path):
    out = str(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"no segment holds these views; found 3:5; allowed: 0:3,center"):
        transfer(cache_path, out, [2, 3, 4])
    with pytest.raises(ConfigError, match=r"no shard matches; found x\*; allowed: shard-0000.tar to shard-0002.tar"):
        transfer(cache_path, out, None, "x*")
    with pytest.raises(ConfigError, match="onto itself"):
        transfer(cache_path, f"{cache_path}/")
    with pytest.raises(CacheError, match="no cache here"):
        transfer(str(tmp_path / "absent"), out)
    assert not Path(out).exists()
    make_cache(world, tmp_path / "other", views=(0,), config=VIEWS.model_copy(update={"seed": 4}))
    with pytest.raises(IdentityError, match=r"another views.seed"):
        transfer(cache_path, str(tmp_path / "other"))
    make_cache(world, tmp_path / "batch", views=(1,), batch_size=4)
    with pytest.raises(IdentityError, match=r"another batch_size than the source; found 4; allowed: 8"):
        transfer(cache_path, str(tmp_path / "batch"))
    make_cache(world, tmp_path / "wide", views=range(4))
    with pytest.raises(CacheError, match=r"in several segments of the source; found 0:4; allowed: some of 0:3"):
        transfer(cache_path, str(tmp_path / "wide"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match=r"not empty and not a cache; found thesis.tex"):
        transfer(cache_path, str(tmp_path / "thesis"))


def copying(out: str, source: str) -> None:
    transfer(source, out)


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_copy_survives_a_kill_at_any_write(cache_path, tmp_path, every, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    assert survives_kills(every, None, tmp_path / "c", copying, cache_path) > 30
