"""The whole path on S3, against a server on this machine: shards and caches there, index and runs on local disk."""

import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import Store
from kdpipe.cache import lease as leases
from kdpipe.cache.lease import Lease
from kdpipe.cache.locks import writing
from kdpipe.shards import Index
from kdpipe.verification import check_integrity
from tests import children, tiny
from tests.remote.s3 import S3, Wsgi, environment, filesystem, serving, tree
from tests.stages.running import kdpipe, refused
from tests.stages.test_mistakes import caching, training
from tests.tiny import World

FORK = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
VIEWS = ("--views", "0:2,center", "--k", 3)


@dataclass(frozen=True)
class Remote:
    """A world whose shards lie in a bucket, and a cache of it, in the bucket and on local disk."""

    world: World
    bucket: str
    cache: str
    local: Path


def done(*words: object) -> dict[str, Any]:
    result = kdpipe(*words, "--json")
    assert result.code == 0, result
    return json.loads(result.out)


@pytest.fixture(scope="module")
def remote(s3: S3, world: World, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    folder, bucket = tmp_path_factory.mktemp("remote"), s3.bucket()
    for shard in world.index.shards:
        filesystem().put_file(shard.url, f"{bucket.removeprefix('s3://')}/shards/{shard.name}")
    summary = done("index", f"{bucket}/shards", "--out", folder / "index", "--block-size", 16)
    assert summary["shards"] == 3
    there = World(folder, Index.open(folder / "index"))
    done(*caching(there, f"{bucket}/c.zarr", *VIEWS))
    done(*caching(there, folder / "c.zarr", *VIEWS))
    return Remote(there, bucket, f"{bucket}/c.zarr", folder / "c.zarr")


def test_the_bytes_are_those_of_a_local_cache(remote):
    assert tree(remote.cache) == tiny.tree(remote.local)
    again = done(*caching(remote.world, remote.cache, *VIEWS))
    assert (again["tasks"], again["skipped"]) == (0, 6)
    assert tree(remote.cache) == tiny.tree(remote.local)


def test_verify_inspect_and_ls(remote):
    assert done("verify", remote.cache, "--samples", 40, "--trust", "tests")["ok"]
    report = done("inspect", remote.cache)
    assert report["root"] == done("inspect", remote.local)["root"]
    [found] = [c for c in done("cache", "ls", remote.bucket)["caches"] if c["cache"] == remote.cache]
    assert found["complete"]
    assert found["views"] == "0:2,center"


@FORK
@pytest.mark.parametrize("workers", [0, 2])
def test_students_are_those_of_a_local_cache(remote, tmp_path, workers):
    """Also of processes that were forked after this one has talked to the server."""
    weights = []
    for name, cache, count in (("remote", remote.cache, workers), ("local", remote.local, 0)):
        more = ["--loss", "kd", "--cache", cache, "--set", f"loader.workers={count}", "--set", "train.threads=1"]
        assert kdpipe(*training(remote.world, tmp_path / name, *more)).code == 0
        weights.append((tmp_path / name / "last.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_there_and_back(remote, s3, tmp_path):
    url = f"{s3.bucket()}/pushed.zarr"
    done("cache", "push", remote.local, url)
    assert tree(url) == tiny.tree(remote.local)
    done("cache", "pull", url, tmp_path / "pulled.zarr")
    assert tiny.tree(tmp_path / "pulled.zarr") == tiny.tree(remote.local)
    part = done("cache", "pull", url, f"{s3.bucket()}/part.zarr", "--views", "1:2", "--shards-matching", "*0001.tar")
    assert (part["tasks"], part["views"]) == (1, "")
    assert check_integrity(Store(part["cache"]))[0] == []


def test_merge_drop_views_and_gc(remote, s3):
    bucket = s3.bucket()
    done(*caching(remote.world, f"{bucket}/more.zarr", "--views", "2:3", "--k", 3))
    merged = done("cache", "merge", f"{bucket}/merged.zarr", remote.cache, f"{bucket}/more.zarr")
    assert merged["views"] == "0:3,center"
    dropped = done("cache", "drop-views", f"{bucket}/merged.zarr", "--views", "1:2", "--yes")
    assert dropped["views"] == "0,2,center" or dropped["views"] == "0:1,2:3,center"
    assert check_integrity(Store(f"{bucket}/merged.zarr"))[0] == []
    filesystem().pipe_file(f"{bucket}/merged.zarr/segments/notes.txt", b"hello")
    assert done("cache", "gc", f"{bucket}/merged.zarr", "--yes")["bytes"] == 5
    gone = done("cache", "gc", "--folder", bucket, "--keep", f"{bucket}/more.zarr", "--yes")
    assert [c["cache"] for c in gone["caches"]] == [f"{bucket}/merged.zarr"]
    assert {name.split("/")[0] for name in tree(bucket)} == {"more.zarr"}


def test_nothing_is_deleted_beside_one_who_writes(remote, monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 1.0)
    store = Store(remote.cache)
    with writing(store):
        line = kdpipe("cache", "gc", remote.cache, "--yes")
        assert "left alone" in line.err
        assert "another process is writing here" in line.err
    done("cache", "gc", remote.cache, "--yes")
    assert tree(remote.cache) == tiny.tree(remote.local)


def cache_to(index: str, out: str) -> None:
    world = World(Path(index).parent, Index.open(index))
    assert kdpipe(*caching(world, out, *VIEWS)).code == 0


def killed(index: str, out: str, call: int, lease: float) -> None:
    leases.LEASE = lease
    Store._create = children.dying_at(Store._create, call)
    cache_to(index, out)


# While it is created, a segment added, a task's file written, its record.
@pytest.mark.parametrize("call", [6, 24, 28])
def test_killed_and_resumed(remote, s3, monkeypatch, call):
    out = f"{s3.bucket()}/c.zarr"
    assert children.run(killed, remote.world.index_path, out, call, 1.0) == -signal.SIGKILL
    assert [name for name in tree(out) if name.startswith("locks/")]
    if "commits/store.json" in tree(out):
        assert all(p["what"].startswith("unexpected") for p in check_integrity(Store(out))[0])
    monkeypatch.setattr(leases, "LEASE", 1.0)
    done(*caching(remote.world, out, *VIEWS))
    # What is left of the killed one's locks goes with the next who is alone.
    done("cache", "gc", out, "--yes")
    assert tree(out) == tiny.tree(remote.local)


def test_two_clients_at_once(remote, s3):
    out, ended = f"{s3.bucket()}/c.zarr", []

    def client() -> None:
        ended.append(children.run(cache_to, remote.world.index_path, out))

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0, 0]
    assert tree(out) == tiny.tree(remote.local)


def test_another_teacher_at_the_same_place_is_refused(remote):
    line = refused(*caching(remote.world, remote.cache, *VIEWS, "--model-kwargs", "seed=1"))
    assert "made with another teacher.model_kwargs" in line
    assert tree(remote.cache) == tiny.tree(remote.local)


def test_what_another_client_writes_is_seen(s3):
    """s3fs keeps listings for the life of a process unless it is told not to."""
    store = Store(f"{s3.bucket()}/c.zarr")
    store.put("commits/head.json", b"1")
    for path in ("", "/commits"):
        filesystem().ls(store.path("") + path, refresh=True)
    assert store.files() == ["commits/head.json"]
    root = store.path("").split("/")[0]
    other = filesystem().__class__(skip_instance_cache=True)
    other.pipe_file(f"{root}/c.zarr/commits/tail.json", b"22")
    assert store.exists("commits/tail.json")
    assert store.size("commits/tail.json") == 2
    other.rm_file(f"{root}/c.zarr/commits/head.json")
    assert not store.exists("commits/head.json")
    assert store.size("commits/head.json") is None


def test_only_one_makes_a_file(s3):
    store = Store(f"{s3.bucket()}/c.zarr")
    assert store.conditional
    assert store.put_new("zarr.json", b"1")
    assert store.put_new("zarr.json", b"1")
    assert not store.put_new("zarr.json", b"2")
    assert store.read("zarr.json") == b"1"


class Conflicting:
    """Answers every other conditional put as S3 does while it decides between two of them."""

    def __init__(self, app: Wsgi) -> None:
        self._app, self._count = app, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ.get("HTTP_IF_NONE_MATCH"):
            self._count += 1
            if self._count % 2:
                start_response("409 Conflict", [("Content-Type", "application/xml")])
                return [b"<Error><Code>ConditionalRequestConflict</Code><Message>Again.</Message></Error>"]
        return self._app(environ, start_response)


class Ignoring:
    """A server that doesn't know conditional puts."""

    def __init__(self, app: Wsgi) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return self._app(environ, start_response)


def test_a_conflict_is_tried_again(s3):
    with serving(Conflicting) as server:
        store = Store(f"{server.bucket()}/c.zarr")
        assert store.put_new("zarr.json", b"1")
        assert not store.put_new("zarr.json", b"2")


def test_a_server_without_conditional_puts_is_found_out(s3, world, cache_path):
    with serving(Ignoring) as server:
        store = Store(f"{server.bucket()}/c.zarr")
        assert not Lease(store, "adding").take()
        assert not store.conditional
        assert store.files() == []
        tiny.make_cache(world, store.url)
        assert tree(store.url) == tiny.tree(Path(cache_path))


@pytest.mark.parametrize(
    "missing",
    [
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SESSION_TOKEN": None},
    ],
    ids=["endpoint", "credentials"],
)
def test_an_unreachable_server_is_one_line(remote, missing):
    with environment(**missing):
        assert remote.bucket in refused("inspect", remote.cache)
        assert remote.bucket in refused(*caching(remote.world, f"{remote.bucket}/new.zarr", *VIEWS))
