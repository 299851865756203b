"""The index: what webdataset reads, what it is identified by, what is written and what is refused."""

import hashlib
import json
import mmap
import os
import pickle
import shutil
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from kdpipe._util.fingerprint import differences
from kdpipe.errors import IndexFileError, ShardError
from kdpipe.shards import BlockReader, Index, build_index
from tests.shards.making import encode, photo, shard_members, write_shards, write_tar

IMAGE = encode(photo(np.random.default_rng(1), 16, 16), "png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", 3, [20, 33, 7], size=16, unlabelled=0.2)
    return tmp_path / "set"


@pytest.fixture
def index(folder: Path) -> Index:
    return build_index(folder, folder.parent / "index", block_size=8, num_classes=10)


def read_by_webdataset(paths: list[str]) -> list[dict[str, Any]]:
    """Samples as webdataset's own reader makes them; over files of ours, since it leaves its own open."""
    with ExitStack() as stack:
        streams = [{"url": path, "stream": stack.enter_context(Path(path).open("rb"))} for path in paths]
        return list(group_by_keys(tar_file_expander(streams)))


def test_round_trip_against_webdataset(folder: Path, index: Index) -> None:
    urls = [shard.url for shard in index.shards]
    theirs = read_by_webdataset(urls)
    reader = BlockReader(index)
    images = [bytes(image) for block in range(index.blocks) for image in reader.read(block)]
    assert index.keys(0, len(index)) == [sample["__key__"] for sample in theirs]
    assert [index.key(row) for row in range(len(index))] == [sample["__key__"] for sample in theirs]
    assert images == [sample["jpg"] for sample in theirs]
    assert index.labels.tolist() == [int(sample.get("cls", -1)) for sample in theirs]
    assert index.unlabelled == sum("cls" not in sample for sample in theirs) > 0


def test_awkward_members_are_grouped_as_webdataset_does(tmp_path: Path) -> None:
    long = "l" * 150 + "/" + "é" * 60
    members = [
        ("./a/b.c/x.JPG", IMAGE),
        ("./a/b.c/x.Cls", b" 3\n"),
        ("._x.jpg", b"apple"),
        (".hidden.jpg", b"?"),
        ("noextension", b"?"),
        ("__meta__/info.json", b"{}"),
        ("y.seg.txt", b"text"),
        (".DS_Store", b"?"),
        ("y.v2.png", IMAGE),
        (f"{long}.png", IMAGE),
        ("only.json", json.dumps({"label": 7}).encode()),
        ("only.image", IMAGE),
    ]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / "x.tar", members, format)
        with tarfile.open(path, "a", format=format) as tar:
            folder = tarfile.TarInfo("some.folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        index = build_index(path, tmp_path / "index", overwrite=True)
        theirs = [sample["__key__"] for sample in read_by_webdataset([str(path)])]
        assert index.keys(0, len(index)) == theirs == ["./a/b.c/x", "y", long, "only"]
        assert index.labels.tolist() == [3, -1, -1, 7]
        assert [bytes(image) for image in BlockReader(index).read(0)] == [IMAGE] * 4


def test_labels_of_json_fields(tmp_path: Path) -> None:
    def member(**fields: object) -> bytes:
        return json.dumps(fields).encode()

    path = write_tar(
        tmp_path / "x.tar",
        [
            ("a.png", IMAGE),
            ("a.cls", b"1"),
            ("a.json", member(label=2, other=3)),
            ("b.png", IMAGE),
            ("b.json", member(label=2)),
            ("c.png", IMAGE),
            ("c.json", member(label=None, other=4)),
        ],
    )
    assert build_index(path, tmp_path / "one").labels.tolist() == [1, 2, -1]
    assert build_index(path, tmp_path / "two", label_key="json:other").labels.tolist() == [3, -1, 4]


def test_blocks_and_their_digests(index: Index) -> None:
    assert index.block_first.tolist() == [0, 8, 16, 20, 28, 36, 44, 52, 53, 60]
    assert index.block_shard.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2]
    for block in range(index.blocks):
        rows = index.rows(block)
        shard = index.shards[index.block_shard[block]]
        data = Path(shard.url).read_bytes()
        start, stop = int(index.block_start[block]), int(index.block_stop[block])
        assert start % 512 == stop % 512 == 0
        assert hashlib.sha256(data[start:stop]).digest() == index.block_digest[block].tobytes()
        content = hashlib.sha256()
        for row in rows:
            at, size = int(index.image_start[row]), int(index.image_size[row])
            assert start < at < at + size <= stop
            assert index.shard_of(row) == shard
            assert index.block_of(row) == block
            key = index.key(row).encode()
            content.update(len(key).to_bytes(4, "little") + key + hashlib.sha256(data[at : at + size]).digest())
        assert content.digest() == index.block_content[block].tobytes()
    for shard in index.shards:
        assert hashlib.sha256(Path(shard.url).read_bytes()).hexdigest() == shard.sha256
    assert sum(shard.samples for shard in index.shards) == len(index) == 60


def _files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_the_same_bytes_for_any_workers(folder: Path, index: Index) -> None:
    for workers in (1, 4):
        out = folder.parent / f"by-{workers}"
        build_index(folder, out, block_size=8, num_classes=10, workers=workers)
        assert _files(out) == _files(index.path)


def _rewrite(path: Path, name: str, change: bytes | str) -> None:
    """Replace a member's data, or its name."""
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert name in dict(members)
    new = [(change, d) if isinstance(change, str) else (n, change) for n, d in members if n == name]
    write_tar(path, [new[0] if n == name else (n, d) for n, d in members])


def test_identity_is_content_not_place(folder: Path, index: Index) -> None:
    moved = folder.parent / "elsewhere"
    shutil.copytree(folder, moved)

    def changed() -> list[str]:
        again = build_index(moved, folder.parent / "again", block_size=8, num_classes=10, overwrite=True)
        fields = [place for place, _, _ in differences(index.identity(), again.identity())]
        assert (again.fingerprint == index.fingerprint) == (not fields)
        return fields

    assert changed() == []
    _rewrite(moved / "shard-0001.tar", "s000021.cls", b"9")
    assert changed() == ["shards[1].labels"]
    _rewrite(moved / "shard-0001.tar", "s000021.jpg", _one_pixel_off(moved / "shard-0001.tar", "s000021.jpg"))
    assert changed() == ["shards[1].content", "shards[1].labels"]
    _rewrite(moved / "shard-0000.tar", "s000003.cls", "s000003.txt")
    assert changed() == ["shards[0].labels", "shards[1].content", "shards[1].labels"]
    (moved / "shard-0002.tar").rename(moved / "shard-0003.tar")
    assert "shards[2].name" in changed()
    other = build_index(folder, folder.parent / "other", block_size=9)
    assert differences(index.identity(), other.identity())[0][0] == "block_size"


def _one_pixel_off(path: Path, name: str) -> bytes:
    with tarfile.open(path) as tar:
        pixels = np.array(Image.open(tar.extractfile(name)))  # type: ignore[arg-type]
    pixels[3, 4, 1] ^= 1
    return encode(pixels, "png")


def test_limit(folder: Path, index: Index) -> None:
    short = index.limit(23)
    assert (len(short), short.blocks, len(short.shards)) == (23, 4, 2)
    assert short.block_first.tolist() == [0, 8, 16, 20, 23]
    assert list(short.rows(3)) == [20, 21, 22]
    assert short.shards[1].samples == 3
    assert short.shards[1].blocks == 1
    assert short.keys(0, 23) == index.keys(0, 23)
    assert len(BlockReader(short).read(3)) == 3
    assert short.labels.base is not None
    with pytest.raises(IndexError):
        short.key(23)
    # A limited index says of its rows what the full one says of them.
    assert short.shard_identity(short.shards[1]) == index.shard_identity(index.shards[1], 3)
    assert short.shard_identity(short.shards[0]) == index.shard_identity(index.shards[0])
    assert short.full.fingerprint == index.fingerprint == index.limit(1000).fingerprint
    assert index.limit(20).shards == index.shards[:1]
    copy = pickle.loads(pickle.dumps(short))
    assert (len(copy), copy.fingerprint) == (23, short.fingerprint)
    assert len(pickle.dumps(short)) < 1000
    with pytest.raises(IndexFileError, match="an impossible limit; found 0; allowed: 1 to 60"):
        index.limit(0)


def test_limit_when_indexing(folder: Path, index: Index) -> None:
    for workers in (1, 4):
        short = build_index(folder, folder.parent / f"short-{workers}", block_size=8, limit=23, workers=workers)
        assert short.keys(0, len(short)) == index.keys(0, 23)
        assert [shard.samples for shard in short.shards] == [20, 3]
        np.testing.assert_array_equal(short.labels, index.labels[:23])


def test_check_labels(index: Index) -> None:
    index.check_labels(10)
    row = int(np.flatnonzero(index.labels >= 7)[0])
    place = rf"sample '{index.key(row)}', byte {index.image_start[row]}"
    with pytest.raises(ShardError, match=rf"{place}: label out of range; found {index.labels[row]}; allowed: 0 to 6"):
        index.check_labels(7)


def test_warns_of_sorted_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300)
    blocks = np.repeat(rng.permutation(10), 30)  # whole classes in a random order
    one_class = np.zeros(300, int)
    for name, order, warns in (("random", labels, False), ("sorted", np.sort(labels), True), ("one", one_class, False)):
        write_tar(tmp_path / f"{name}.tar", [m for i, c in enumerate(order) for m in _sample(i, c)])
        warnings = build_index(tmp_path / f"{name}.tar", tmp_path / name).warnings()
        assert any("sorted rather than shuffled" in line for line in warnings) == warns
    write_tar(tmp_path / "runs.tar", [m for i, c in enumerate(blocks) for m in _sample(i, c)])
    [line] = build_index(tmp_path / "runs.tar", tmp_path / "runs").warnings()
    assert "10 runs of equal labels where about 271 are expected" in line


def _sample(i: int, label: int) -> list[tuple[str, bytes]]:
    return [(f"{i:04d}.png", IMAGE), (f"{i:04d}.cls", str(label).encode())]


def test_counts_unlabelled(index: Index) -> None:
    assert f"{index.unlabelled} of 60 samples have no label" in index.warnings()


def test_remote_shards_give_the_same_index(folder: Path, index: Index) -> None:
    fs = fsspec.filesystem("memory")
    for path in folder.iterdir():
        fs.pipe_file(f"/index-test/{path.name}", path.read_bytes())
    remote = build_index("memory://index-test", folder.parent / "remote", block_size=8, num_classes=10)
    assert remote.identity() == index.identity()
    fs.rm("/index-test/shard-0001.tar")
    with pytest.raises(ShardError, match=r"memory://.*shard-0001.tar: a shard of the pattern is missing"):
        build_index("memory://index-test/shard-{0000..0002}.tar", folder.parent / "gone")


def test_writing_over_what_is_there(folder: Path, index: Index) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in index.path.iterdir()}
    same = build_index(folder, index.path, block_size=8, num_classes=10)
    assert same.digest == index.digest
    assert {file.name: file.stat().st_mtime_ns for file in index.path.iterdir()} == before

    with pytest.raises(IndexFileError, match=r"another index is there, with other block_size. Choose another --out"):
        build_index(folder, index.path, block_size=4, num_classes=10)
    with pytest.raises(IndexFileError, match="another index is there, with other names"):
        build_index(folder / "shard-0000.tar", index.path, block_size=8, num_classes=10)
    with pytest.raises(
        IndexFileError, match=r"another index is there. Choose another --out, or replace it by --overwrite"
    ):
        build_index(folder, index.path, block_size=8, num_classes=10, limit=7)
    assert Index.open(index.path).digest == index.digest
    assert len(build_index(folder, index.path, block_size=8, limit=7, overwrite=True)) == 7
    assert sorted(path.name for path in index.path.parent.iterdir()) == ["index", "set"]


def test_an_index_follows_its_shards_to_another_folder(folder: Path, index: Index) -> None:
    moved = folder.rename(folder.parent / "moved")
    with pytest.raises(ShardError, match=r"shard-0000.tar: the shard is not where it was indexed"):
        BlockReader(index).read(0)
    again = build_index(moved, index.path, block_size=8, num_classes=10)
    assert again.fingerprint == index.fingerprint
    BlockReader(again).read(0)
    with pytest.raises(IndexFileError, match="replaced while in use"):
        pickle.loads(pickle.dumps(index))


def test_never_writes_over_anything_else(folder: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("precious")
    other.mkdir()
    (other / "photo.jpg").write_bytes(IMAGE)
    for path in (file, other, folder):
        with pytest.raises(IndexFileError, match="something else than an index is there"):
            build_index(folder, path, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert len(build_index(folder, tmp_path / "empty")) == 60
    with pytest.raises(IndexFileError, match="the index can't be written"):
        build_index(folder, file / "index")


def test_nothing_is_left_when_the_disk_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IndexFileError, match="the index can't be written \\(No space left on device\\)"):
        build_index(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_damage_is_noticed(index: Index) -> None:
    index.verify()
    document = index.path / "index.json"
    good = document.read_bytes()

    def opens(message: str) -> None:
        with pytest.raises(IndexFileError, match=message):
            Index.open(index.path)

    document.write_bytes(good.replace(b'"block_size":8', b'"block_size":9'))
    opens("its digest doesn't match")
    document.write_bytes(good[:-5])
    opens("the index is damaged")
    document.write_bytes(good.replace(b'"version":1', b'"version":99'))
    opens("another format; found version 99; allowed: version 1")
    document.write_bytes(b"{}")
    opens("not an index of kdpipe")
    document.unlink()
    opens(r"no index there. Pass a folder with index.json")
    document.write_bytes(good)

    labels = index.path / "labels.npy"
    data = labels.read_bytes()
    labels.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(IndexFileError, match=r"labels.npy: an array of the index is damaged"):
        Index.open(index.path).verify()
    labels.write_bytes(data[:-3])
    opens(r"labels.npy: an array of the index is missing or cut")
    np.save(labels, index.labels[:-1])
    opens(r"labels.npy: an array of the index is not the one written; found int32 \(59,\); allowed: int32 \(60,\)")
    with pytest.raises(IndexFileError, match=r"no index there. Make it by `kdpipe index`"):
        Index.open(index.path / "nowhere")


def test_opening_does_not_read_the_arrays(tmp_path: Path) -> None:
    """Fourteen million samples must open at once: no work that grows with them."""
    write_tar(tmp_path / "x.tar", [m for i in range(50) for m in _sample(i, i % 5)])
    index = build_index(tmp_path / "x.tar", tmp_path / "index")
    for array in (index.labels, index.image_start, index.block_digest):
        owner: Any = array
        while isinstance(owner, np.ndarray):
            assert not owner.flags.writeable
            owner = owner.base
        assert isinstance(owner, mmap.mmap)


def test_hidden_files_in_folders_are_passed_over(tmp_path: Path) -> None:
    """webdataset would make samples of them; nobody means those."""
    members = [("a/x.cls", b"1"), ("a/._x.png", b"apple"), ("a/x.png", IMAGE), ("a/.DS_Store", b"?")]
    index = build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "index")
    assert (index.keys(0, len(index)), index.labels.tolist()) == (["a/x"], [1])


def test_members_of_a_shard_in_the_helper_are_as_documented() -> None:
    members = shard_members(10, unlabelled=0.3)
    assert sum(name.endswith(".cls") for name, _ in members) == 7
