"""A process that is stopped in the middle of a commit, and then woken: it holds up no other task, and spoils none."""

from pathlib import Path

import pytest

import kdpipe.cache.lease as leases
import kdpipe.cache.locks as locks
from kdpipe.cache import Cache, Store
from kdpipe.cache.locks import committing
from kdpipe.errors import CacheError
from tests.tiny import make_cache, tree

SHARD = "shard-0001.tar"


@pytest.fixture
def unfinished(world, tmp_path) -> tuple[Path, dict[str, bytes]]:
    """A cache that lacks the records of two tasks, and its files before."""
    out = tmp_path / "c"
    make_cache(world, out, views=(0,))
    whole, cache = tree(out), Cache(Store(out))
    for shard in (SHARD, "shard-0002.tar"):
        cache.store.remove(cache.segments[0].commit(shard))
    return out, whole


def test_a_stopped_process_holds_up_no_other_task_and_its_own_for_a_while(world, unfinished, monkeypatch):
    out, whole = unfinished
    monkeypatch.setattr(leases, "LEASE", 0.2)
    monkeypatch.setattr(locks, "_PATIENCE", 2.0)
    [segment] = Cache(Store(out)).segments
    folder = segment.chunk("log_prob", 1).rpartition("/")[0]
    for name in {field.name for field in segment.encoding.fields()}:
        folder = min(folder, segment.chunk(name, 1).rpartition("/")[0])
    with committing(Store(out), segment.name, SHARD, folder):
        make_cache(world, out, views=(0,))
    assert tree(out) == whole


def test_a_woken_process_replaces_no_file_of_a_task_that_others_finished(world, unfinished, monkeypatch):
    out, whole = unfinished
    [segment] = Cache(Store(out)).segments
    record, chunk = segment.commit(SHARD), segment.chunk("log_prob", 1)
    put_new = Store.put_new

    def late(self: Store, name: str, data: bytes) -> bool:
        if name == chunk:
            (out / chunk).parent.mkdir(parents=True, exist_ok=True)
            (out / chunk).write_bytes(b"of the run that went on")
            (out / record).write_bytes(whole[record])
        return put_new(self, name, data)

    monkeypatch.setattr(Store, "put_new", late)
    with pytest.raises(CacheError, match=r"shard-0001\.tar\.json: another run has finished this task meanwhile"):
        make_cache(world, out, views=(0,))
    assert (out / chunk).read_bytes() == b"of the run that went on"
