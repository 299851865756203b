"""Every record holds the digest of its cache's identity: a record of another cache never counts."""

import shutil
import uuid
from pathlib import Path

import fsspec
import pytest

import kdpipe.caching.backend as backend
from kdpipe.cache import Cache, Store
from kdpipe.cache.sealed import read_record, seal
from kdpipe.errors import IdentityError
from kdpipe.verification import check_integrity
from tests.stages.running import kdpipe, refused
from tests.stages.test_mistakes import caching
from tests.tiny import World, make_cache, tree

SEGMENT = "commits/000-top4-float16-v0-3"


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of another teacher that is laid out in the same way."""
    path = tmp_path_factory.mktemp("other") / "c.zarr"
    make_cache(world, path, model_kwargs={"seed": 1})
    return path


@pytest.fixture
def copied(cache_path: str, tmp_path: Path) -> Path:
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


def problems(cache: Path) -> list[tuple[str, str]]:
    return [(p["where"], p["what"]) for p in check_integrity(Store(cache))[0]]


def test_every_record_has_it(cache_path):
    cache = Cache(Store(cache_path))
    names = cache.store.files("commits")
    assert len(names) == 9
    assert {read_record(cache.store, name)["identity_digest"] for name in names} == {cache.identity_digest}


def test_a_task_of_another_cache_does_not_count(world, copied, other):
    """Its values and its record, taken whole: every sha256 in it is right."""
    before, name = tree(copied), f"{SEGMENT}/shard-0001.tar.json"
    record = read_record(Store(other), name)
    for file in (name, *record["files"]):
        shutil.copy(other / file, copied / file)
    cache = Cache(Store(copied))
    assert cache.unrelated == [name]
    assert (cache.segments[0].name, "shard-0001.tar") not in cache.commits
    assert problems(copied) == [(name, "it is of another cache: its identity_digest differs")]
    assert f"{name} is ignored" in kdpipe("inspect", copied).err
    assert kdpipe(*caching(world, copied, "--views", "0:3,center", "--k", 4)).code == 0
    assert tree(copied) == before


def test_a_segment_of_another_cache_is_refused(copied, other):
    shutil.copy(other / SEGMENT / "segment.json", copied / SEGMENT / "segment.json")
    assert f"{SEGMENT}/segment.json: a record of another cache" in refused("inspect", copied)
    where = f"{SEGMENT}/segment.json"
    assert (where, "it is of another cache: its identity_digest differs") in problems(copied)


def test_a_root_of_another_cache_is_refused(copied, other):
    """With a store record that has its sha256, as one that was put in place of another would."""
    shutil.copy(other / "zarr.json", copied / "zarr.json")
    theirs = read_record(Store(other), "commits/store.json")
    ours = read_record(Store(copied), "commits/store.json")
    ours["files"]["zarr.json"] = theirs["files"]["zarr.json"]
    (copied / "commits/store.json").write_bytes(seal(ours))
    assert "commits/store.json: a record of another cache" in refused("inspect", copied)


def test_records_of_older_releases_count(copied):
    """They have no such digest; the root digest is the same."""
    before = Cache(Store(copied)).root_digest()
    for path in copied.glob("commits/**/*.json"):
        record = read_record(Store(copied), str(path.relative_to(copied)))
        del record["identity_digest"]
        path.write_bytes(seal(record))
    assert Cache(Store(copied)).root_digest() == before
    assert problems(copied) == []


def test_a_run_whose_cache_was_replaced_writes_no_more(world, monkeypatch):
    """Somebody deletes the cache while a teacher is asked, and another teacher's is made in its place."""
    url, real, done = f"memory://kdpipe-{uuid.uuid4().hex}/c", backend.run_task, []

    def replacing(*args):
        if not done:
            done.append(True)
            fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)
            make_cache(world, url, model_kwargs={"seed": 1})
        return real(*args)

    monkeypatch.setattr(backend, "run_task", replacing)
    with pytest.raises(IdentityError, match="another run has put its own cache in this one's place"):
        make_cache(world, url)
    cache = Cache(Store(url))
    assert cache.identity["teacher"]["model_kwargs"] == {"seed": 1}
    assert len(cache.commits) == 6
    assert check_integrity(cache.store)[0] == []
