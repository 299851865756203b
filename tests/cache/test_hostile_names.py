"""Nothing in a cache names a path: whatever names stand in it, all that is written is below the place asked for."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from kdpipe.cache import Cache, Store, create, read_canaries
from kdpipe.cache.layout import CANARY_CHUNK, part_file, part_record
from kdpipe.cache.modules import put_part
from kdpipe.cache.tools.gc import remove_orphans
from kdpipe.cache.tools.merge import merge
from kdpipe.cache.tools.transfer import transfer
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.verification import check_integrity
from tests.cache.resealing import rewrite
from tests.stages.running import kdpipe, refused
from tests.tiny import make_cache, tree

SEGMENT = "000-top4-float16-v0-3"
TASK = f"commits/{SEGMENT}/shard-0001.tar.json"
CHUNK = f"segments/{SEGMENT}/log_prob/c/0/1/0/0"
# Relative to the target's root, a file beside it is ../watched.
NAMES = {
    "absolute": "{beside}/watched",
    "parent": "../watched",
    "parent-inside": "segments/../../watched",
    "current": "./zarr.json",
    "backslashes": "..\\watched",
    "nul": "segments/\0watched",
    "newline": "segments/a\nb",
    "empty-component": "segments//zarr.json",
    "slash-at-the-end": "segments/",
    "over-long-component": "segments/" + "x" * 256,
    "over-long": "/".join(["x" * 200] * 6),
    "surrogate": "segments/\ud800",
    "url": "memory://watched/x",
    "of-no-layout": "notes.txt",
    "of-another-segment": CHUNK.replace(SEGMENT, "001-top4-float16-center"),
    "of-another-shard": CHUNK.replace("c/0/1", "c/0/2"),
    "of-a-record": TASK,
}


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path) -> Iterator[str]:
    """A folder or a URL with room beside it."""
    if request.param == "local":
        yield str(tmp_path / "place")
        return
    name = f"kdpipe-{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"/{name}/watched", b"as it was")
    yield f"memory://{name}"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def everything(folder: Path) -> dict[str, Any]:
    """All files there are: below a folder, and in memory."""
    return {**tree(folder, ()), **{name: bytes(f.getbuffer()) for name, f in fsspec.filesystem("memory").store.items()}}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_store_takes_no_such_name(name, place, tmp_path):
    (tmp_path / "watched").write_bytes(b"as it was")
    store, before = Store(f"{place}/c"), everything(tmp_path)
    name = name.format(beside=tmp_path)
    works: list[Callable[[], Any]] = [
        lambda: store.path(name),
        lambda: store.read(name),
        lambda: store.read_range(name, 0, 1),
        lambda: store.exists(name),
        lambda: store.size(name),
        lambda: store.files(name),
        lambda: store.put(name, b"x"),
        lambda: store.remove(name),
        lambda: store.put_new(name, b"x"),
        lambda: store.read_if(name),
    ]
    if store.local is not None:
        works += [lambda: store.sync(name), lambda: store.sync_folders(name)]
    if name in (TASK, CHUNK.replace(SEGMENT, "001-top4-float16-center"), CHUNK.replace("c/0/1", "c/0/2")):
        assert store.path(name).endswith(name)  # which the layout has
        return
    for i, work in enumerate(works):
        if name == "notes.txt" and i in (4, 7):  # unexpected files can be measured and deleted
            assert work() is None
            continue
        with pytest.raises(CorruptionError, match="names a file as no cache does"):
            work()
    assert everything(tmp_path) == before


def _task(content: dict[str, Any], name: str) -> None:
    content["files"][name] = content["files"].pop(CHUNK)


def _store(content: dict[str, Any], name: str) -> None:
    content["files"][name] = content["files"].pop("canaries/labels.json")


def _segment(content: dict[str, Any], name: str) -> None:
    content["files"][name] = content["files"].pop("segments/zarr.json")


RECORDS = {
    "store": ("commits/store.json", _store),
    "segment": (f"commits/{SEGMENT}/segment.json", _segment),
    "task": (TASK, _task),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("kind", RECORDS)
def test_a_name_in_a_record_refuses_the_whole_cache(kind, name, cache_path, place, tmp_path):
    """Pulled to a folder or pushed to a URL, merged, opened, verified."""
    record, change = RECORDS[kind]
    name = name.format(beside=tmp_path)
    source = tmp_path / "hostile"
    shutil.copytree(cache_path, source)
    (tmp_path / "watched").write_bytes(b"as it was")
    try:
        rewrite(source, record, lambda content: change(content, name))
    except UnicodeEncodeError:
        pytest.skip("can't be written as JSON")
    before = everything(tmp_path)
    for work in (
        lambda: transfer(str(source), f"{place}/c"),
        lambda: transfer(str(source), f"{place}/c", [1]),
        lambda: merge(f"{place}/c", [str(source), cache_path]),
        lambda: Cache(Store(source)),
        lambda: remove_orphans(Store(source)),
    ):
        with pytest.raises(CorruptionError) as e:
            work()
        assert record in str(e.value)
        # Half of a surrogate pair is no text: no record has one.
        assert ("damaged" if "\ud800" in name else "which is no file of its own") in str(e.value)
        assert len(str(e.value).splitlines()) == 1
    problems, _ = check_integrity(Store(source))
    assert [p for p in problems if p["where"] == record]
    assert everything(tmp_path) == before


def test_the_commands_refuse_in_one_line(cache_path, tmp_path):
    source = tmp_path / "hostile"
    shutil.copytree(cache_path, source)
    rewrite(source, TASK, lambda content: _task(content, f"{tmp_path}/watched"))
    before = everything(tmp_path)
    for args in (
        ("cache", "pull", source, tmp_path / "c"),
        ("cache", "push", source, "memory://kdpipe-hostile/c"),
        ("cache", "merge", tmp_path / "c", source, cache_path),
        ("inspect", source),
        ("cache", "gc", source, "--yes"),
        ("cache", "drop-views", source, "--views", "1", "--yes"),
    ):
        assert "which is no file of its own" in refused(*args), args
    result = kdpipe("verify", source)
    assert result.code == 1
    assert "which is no file of its own" in result.out
    assert everything(tmp_path) == before


def test_a_part_names_its_own_file_alone(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "a")
    put_part(Cache(Store(tmp_path / "a")), "head", {"x": torch.zeros(2)}, {"teacher": "0" * 64})

    def change(content):
        content["files"]["../../x"] = content["files"].pop(part_file("head"))

    rewrite(tmp_path / "a", part_record("head"), change)
    with pytest.raises(CorruptionError, match=r"commits/head.json: .*'../../x', which is no file of its own"):
        transfer(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("key", ["../x", "a/../../x", "//x"])
def test_names_that_a_store_lists_are_checked_too(cache_path, key):
    """Object stores have keys that no file system would."""
    fs, name = fsspec.filesystem("memory"), f"kdpipe-{uuid.uuid4().hex}"
    transfer(cache_path, f"memory://{name}/c")
    fs.store[f"/{name}/c/commits/{key}"] = fs.store[f"/{name}/c/commits/store.json"]
    try:
        with pytest.raises(CorruptionError, match="names a file as no cache does"):
            Store(f"memory://{name}/c").files()
    finally:
        for known in [n for n in fs.store if n.startswith(f"/{name}/")]:
            del fs.store[known]


class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path) -> Path:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/file").write_bytes(b"as it was")
        return tmp_path / "outside"

    @pytest.fixture
    def copied(self, cache_path, tmp_path) -> Path:
        shutil.copytree(cache_path, tmp_path / "c")
        return tmp_path / "c"

    def test_a_file_is_not_read_through_one(self, copied, outside, tmp_path):
        shutil.move(copied / CHUNK, outside / "chunk")
        (copied / CHUNK).symlink_to(outside / "chunk")
        with pytest.raises(CorruptionError, match="a link leads out of the cache"):
            transfer(str(copied), str(tmp_path / "b"))
        assert not (tmp_path / "b" / CHUNK).exists()
        assert [p["what"] for p in check_integrity(Store(copied))[0]] == ["a link leads out of the cache"]

    @pytest.mark.parametrize("name", ["commits/store.json", "zarr.json", f"commits/{SEGMENT}", "segments"])
    def test_a_cache_is_not_opened_through_one(self, copied, outside, name):
        shutil.move(copied / name, outside / "it")
        (copied / name).symlink_to(outside / "it")
        with pytest.raises(CacheError, match=r"a link leads out of the cache|not a folder"):
            Cache(Store(copied))
        assert check_integrity(Store(copied))[0]

    @pytest.mark.parametrize("name", ["segments", "commits", "canaries", f"segments/{SEGMENT}/log_prob"])
    def test_nothing_is_written_through_one(self, world, cache_path, outside, tmp_path, name):
        before = tree(outside)
        (tmp_path / "b" / name).parent.mkdir(parents=True)
        (tmp_path / "b" / name).symlink_to(outside)
        for work in (
            lambda: transfer(cache_path, str(tmp_path / "b")),
            lambda: make_cache(world, tmp_path / "b"),
            lambda: merge(str(tmp_path / "b"), [cache_path]),
        ):
            with pytest.raises(CacheError):
                work()
            assert tree(outside) == before

    def test_arrays_are_not_written_through_one(self, world, copied, outside):
        shutil.rmtree(copied / f"segments/{SEGMENT}/log_prob/c")
        (copied / f"segments/{SEGMENT}/log_prob/c").symlink_to(outside)
        (copied / TASK).unlink()
        before = tree(outside)
        with pytest.raises(CorruptionError, match="a link leads out of the cache"):
            make_cache(world, copied)
        assert tree(outside) == before

    def test_nothing_is_listed_or_deleted_through_one(self, copied, outside):
        (outside / "x.partial").write_bytes(b"as it was")
        (copied / "segments/foreign").symlink_to(outside)
        (copied / "commits/up").symlink_to("..")
        store = Store(copied)
        assert "segments/foreign" in store.files()
        assert not [name for name in store.files() if "outside" in name or name.startswith("segments/foreign/")]
        before = tree(outside)
        assert store.sweep() == []
        result = kdpipe("cache", "gc", copied, "--yes")
        assert result.code == 2
        assert "a link leads out of the cache" in result.err
        store.remove("segments/foreign")  # the link itself
        assert not (copied / "segments/foreign").is_symlink()
        kdpipe("cache", "gc", copied, "--yes")
        assert tree(outside) == before

    def test_the_cache_itself_may_be_one(self, copied, tmp_path):
        (tmp_path / "alias").symlink_to(copied)
        assert len(Cache(Store(tmp_path / "alias")).commits) == 6
        transfer(str(tmp_path / "alias"), str(tmp_path / "b"))
        assert check_integrity(Store(tmp_path / "alias"))[0] == []

    def test_a_pipe_is_not_waited_for(self, copied):
        (copied / TASK).unlink()
        os.mkfifo(copied / TASK)
        with pytest.raises(CorruptionError, match="not a regular file"):
            Cache(Store(copied))


@pytest.mark.parametrize("name", ["a/b", "..", "segment", "x" * 210, "a\\b", "a\nb", ""])
def test_a_shard_whose_name_is_no_file_name_is_refused_at_creation(cache_path, tmp_path, name):
    cache = Cache(Store(cache_path))
    first, *others = cache.identity["shards"]
    identity = {**cache.identity, "shards": [{**first, "name": name}, *others]}
    with pytest.raises(CacheError, match=r"named after it.* Rename the shard") as e:
        create(Store(tmp_path / "c"), identity, read_canaries(cache))
    assert len(str(e.value).splitlines()) == 1
    assert not (tmp_path / "c").exists()
    assert CANARY_CHUNK in cache.record["files"]
