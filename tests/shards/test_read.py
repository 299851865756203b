"""Reading blocks: right bytes from any thread or process, changed shards refused."""

import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import fsspec
import pytest

from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards import read as reading
from tests.shards.making import write_shards


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_shards(tmp_path / "set", 3, [20, 33, 7], size=16)
    return build_index(tmp_path / "set", tmp_path / "index", block_size=8)


def _all(reader: BlockReader) -> list[bytes]:
    return [bytes(image) for block in range(reader.index.blocks) for image in reader.read(block)]


def test_image_is_the_row_of_read(index: Index) -> None:
    whole = _all(BlockReader(index))
    reader = BlockReader(index)
    for row in [59, 0, 19, 20, 21, 0, 58]:
        assert bytes(reader.image(row)) == whole[row]


def test_images_outlive_the_reader(index: Index) -> None:
    reader = BlockReader(index)
    image = reader.read(0)[0]
    reader.close()
    assert bytes(image[:2]) == b"\xff\xd8"
    assert bytes(reader.read(0)[0]) == bytes(image)


def test_a_changed_shard_is_refused(index: Index) -> None:
    shard = index.shards[1]
    path = Path(shard.url)
    data = bytearray(path.read_bytes())
    row = 30
    data[int(index.image_start[row]) + 5] ^= 1
    path.write_bytes(data)
    block = index.block_of(row)
    start, stop = int(index.block_start[block]), int(index.block_stop[block])
    message = rf"shard-0001.tar, block {block}, bytes {start} to {stop}: the shard has changed since it was indexed"
    for call in (lambda r: r.read(block), lambda r: r.image(row)):
        with pytest.raises(ShardError, match=message):
            call(BlockReader(index))
    BlockReader(index).read(block - 1)
    path.write_bytes(data + bytes(512))
    with pytest.raises(ShardError, match=rf"found {shard.size + 512} bytes; allowed: {shard.size} bytes"):
        BlockReader(index).read(block)


def test_threads_share_a_reader(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_OPEN_SHARDS", 1)  # so that maps come and go all the time
    whole = _all(BlockReader(index))
    reader = BlockReader(index)
    results: list[bool] = []

    def work(turn: int) -> None:
        blocks = [(turn * 5 + i * 4) % index.blocks for i in range(60)]
        results.append(all([bytes(d) for d in reader.read(b)] == [whole[r] for r in index.rows(b)] for b in blocks))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_pickled_reader_opens_its_own_files(index: Index) -> None:
    reader = BlockReader(index.limit(30))
    expected = _all(reader)
    data = pickle.dumps(reader)
    assert len(data) < 1000
    assert _all(pickle.loads(data)) == expected


def _in_child(reader: BlockReader, connection: object) -> None:
    connection.send(_all(reader))  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_reads(index: Index) -> None:
    reader = BlockReader(index)
    expected = _all(reader)
    with reader._lock:  # as a reading thread would hold it
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_in_child, args=(reader, theirs))
        child.start()
    assert ours.poll(20)
    assert ours.recv() == expected
    child.join()


def test_remote(index: Index, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for shard in index.shards:
        fs.pipe_file(f"/read-test/{shard.name}", Path(shard.url).read_bytes())
    remote = build_index("memory://read-test/*.tar", tmp_path / "remote", block_size=8)
    reader = BlockReader(remote)
    assert _all(reader) == _all(BlockReader(index))
    assert bytes(reader.image(33)) == bytes(BlockReader(index).image(33))
    fs.pipe_file("/read-test/shard-0000.tar", bytes(remote.shards[0].size))
    with pytest.raises(ShardError, match="changed since it was indexed"):
        BlockReader(remote).read(0)
    fs.rm("/read-test/shard-0000.tar")
    with pytest.raises(ShardError, match="not where it was indexed"):
        BlockReader(remote).read(0)
