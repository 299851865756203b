"""Locks of files, where there are no flocks."""

import shutil
import threading
import time
import uuid
from collections.abc import Iterator

import fsspec
import pytest

import kdpipe._util.files as files
import kdpipe.cache.lease as leases
import kdpipe.cache.locks as locks
from kdpipe.cache import Store
from kdpipe.cache.lease import Lease
from kdpipe.cache.locks import adding, alone, committing, writing
from kdpipe.errors import CacheError

SEGMENT = "000-dense-float16-v0-1"
SHARD = f"commits/{SEGMENT}/t.tar.json"
FOLDER = f"segments/{SEGMENT}/logits/c/0/0/0"


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path, monkeypatch) -> Iterator[Store]:
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(locks, "_PAUSE_REMOTE", 0.02)
    if request.param == "folder":
        yield Store(tmp_path / "c")
        return
    name = f"kdpipe-{uuid.uuid4().hex}"
    yield Store(f"memory://{name}/c")
    if fsspec.filesystem("memory").exists(f"/{name}"):
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def held(store: Store) -> list[str]:
    return [name for name in store.files() if name.startswith("locks/")]


def test_one_holds_it_until_it_is_released(store):
    one, other = Lease(store, "adding"), Lease(store, "adding")
    assert one.take()
    assert not other.take()
    one.require()
    one.release()
    assert other.take()
    with pytest.raises(CacheError, match="another has taken it"):
        one.require()
    one.release()  # no harm to the other's
    other.require()
    other.release()
    assert held(store) == []


def test_of_many_exactly_one_holds_it(store):
    inside, most, done = [0], [0], []

    def work() -> None:
        with adding(store):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1
            done.append(True)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, len(done)) == ([1], 6)
    assert held(store) == []


def kill(lease: Lease) -> None:
    """End the holder's renewing without a release."""
    assert lease._renewing is not None
    lease._renewing.stop()


def test_a_killed_holders_lease_ends(store, monkeypatch):
    """By the waiting process's own clock, whatever the time of day is anywhere."""
    monkeypatch.setattr(leases, "LEASE", 0.3)
    monkeypatch.setattr(time, "time", lambda: -1e9)
    gone = Lease(store, f"tasks/{SEGMENT}/t.tar")
    assert gone.take()
    kill(gone)
    began = time.monotonic()
    with committing(store, SEGMENT, "t.tar", FOLDER) as require:
        assert time.monotonic() - began >= 0.3
        require()
        # Stopped and woken rather than killed: it must not go on, nor take away what is another's.
        with pytest.raises(CacheError, match=r"t\.tar: this process didn't renew its lock for 0 s"):
            gone.require()
        gone._renewing = leases._Renewing(lambda _: None)
        gone.release()
        require()
    assert held(store) == []


def test_a_living_holders_lease_does_not_end(store, monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 0.6)
    one, other = Lease(store, "adding"), Lease(store, "adding")
    assert one.take()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert not other.take()
        time.sleep(0.02)
    assert other.others_alive
    one.release()


def test_nobody_is_alone_beside_a_writer(store, monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 0.3)
    with writing(store) as writer:
        assert not writer.alone
        with pytest.raises(CacheError, match="another process is writing here"), alone(store):
            pass
    with alone(store):
        monkeypatch.setattr(locks, "_PATIENCE", 0.0)
        with pytest.raises(CacheError, match="another process is writing here"), writing(store):
            pass


def test_a_lock_that_is_just_being_written_is_not_taken_for_one(tmp_path):
    store = Store(tmp_path / "c")
    name = f"locks/writing/{'0' * 32}.json"
    store.put(name, b"one")
    shutil.copy(tmp_path / "c" / name, tmp_path / "c" / f"{name}.{'1' * 32}.partial")
    assert leases.living(store, "locks/writing", leases.Watch()) == [name]


def test_what_killed_writers_left_goes_with_who_is_alone(store, monkeypatch):
    monkeypatch.setattr(leases, "LEASE", 0.3)
    store.put(f"locks/writing/{'0' * 32}.json", b"")
    store.put(f"locks/tasks/{SEGMENT}/t.tar/000003.json", b"")
    with alone(store):
        assert {name.split("/")[1] for name in held(store)} == {"alone"}
    assert held(store) == []


def test_a_file_system_without_hard_links_has_no_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr("os.link", refuse)
    store = Store(tmp_path)
    assert store.put_new(SHARD, b"1")
    assert not store.put_new(SHARD, b"2")
    assert store.read(SHARD) == b"1"
    assert not store.conditional
    with adding(store), committing(store, SEGMENT, "t.tar", FOLDER), alone(store):
        pass
    assert store.files() == [SHARD]


def test_a_lock_that_cannot_be_deleted_ends_by_itself(store, monkeypatch):
    def refuse(*_: object) -> None:
        raise ConnectionError("Could not connect to the endpoint")

    monkeypatch.setattr(leases, "LEASE", 0.3)
    with monkeypatch.context() as m:
        m.setattr(store._fs, "rm_file", refuse)
        with pytest.raises(CacheError, match="can't be deleted: ConnectionError: Could not connect to the endpoint"):
            store.remove(SHARD)
        with writing(store):
            pass
    [left] = held(store)
    assert left.startswith("locks/writing/")
    with alone(store):
        pass
    assert held(store) == []
