"""Every bad shard and bad sample: named with its place, and left out by skip_bad."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.errors import ShardError
from kdpipe.shards import Index, build_index
from tests.shards.making import encode, photo, shard_members, write_shards, write_tar

Members = list[tuple[str, bytes]]
JPEG = encode(photo(np.random.default_rng(0), 64, 64))
CUT = JPEG[: len(JPEG) // 2]
DEEP = encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "png")


def build(path: Path, **options: object) -> Index:
    return build_index(path, path.with_suffix(".index"), **options)  # type: ignore[arg-type]


def offsets(path: Path) -> dict[str, list[int]]:
    """Byte offsets of each member's header, told by tarfile."""
    found: dict[str, list[int]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            found.setdefault(info.name, []).append(info.offset)
    return found


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


# name: (members of the bad sample, member whose offset is named (and which of that name), message, options)
BAD: dict[str, tuple[Members, tuple[str, int], str, dict[str, object]]] = {
    "no image": (
        [("bad.cls", b"1"), ("bad.txt", b"hello")],
        ("bad.cls", 0),
        "no image in the sample; found .cls .txt",
        {},
    ),
    "several images": (
        [("bad.jpg", JPEG), ("bad.mask.png", encode(np.zeros((4, 4, 3), np.uint8), "png"))],
        ("bad.jpg", 0),
        "several images in one sample; found .jpg .mask.png; allowed: one",
        {},
    ),
    "non-image": (
        [("bad.cls", b"1"), ("bad.jpg", b"<html>404</html>")],
        ("bad.jpg", 0),
        "member .jpg is not a JPEG, PNG or WebP image; found first bytes 3c 68 74 6d 6c 3e 34 30",
        {},
    ),
    "empty image": ([("bad.jpg", b"")], ("bad.jpg", 0), "not a JPEG, PNG or WebP image; found an empty file", {}),
    "another format": ([("bad.gif", b"GIF89a.....")], ("bad.gif", 0), "member .gif is not a JPEG", {}),
    "corrupt": ([("bad.jpg", CUT)], ("bad.jpg", 0), "the image is truncated or corrupt", {}),
    "16 bits": ([("bad.png", DEEP)], ("bad.png", 0), "more than 8 bits a channel; found 16; allowed: 1 to 8", {}),
    "member twice": (
        [("bad.jpg", JPEG), ("bad.JPG", JPEG)],
        ("bad.JPG", 0),
        "two members .jpg; found the first at byte",
        {},
    ),
    "label text": (
        [("bad.jpg", JPEG), ("bad.cls", b"cat")],
        ("bad.cls", 0),
        "the label is not an integer; found 'cat'",
        {},
    ),
    "label empty": ([("bad.jpg", JPEG), ("bad.cls", b"")], ("bad.cls", 0), "the label is not an integer; found ''", {}),
    "label negative": (
        [("bad.jpg", JPEG), ("bad.cls", b"-2")],
        ("bad.cls", 0),
        "label out of range; found -2; allowed: 0 to",
        {},
    ),
    "label too large": (
        [("bad.jpg", JPEG), ("bad.cls", b"10")],
        ("bad.cls", 0),
        "label out of range; found 10; allowed: 0 to 9",
        {"num_classes": 10},
    ),
    "label beyond int32": ([("bad.jpg", JPEG), ("bad.cls", b"2147483648")], ("bad.cls", 0), "label out of range", {}),
    "json broken": ([("bad.jpg", JPEG), ("bad.json", b"{")], ("bad.json", 0), "member .json is not JSON", {}),
    "json label text": (
        [("bad.jpg", JPEG), ("bad.json", _json(label="cat"))],
        ("bad.json", 0),
        "the label, field 'label' of .json, is not an integer; found 'cat'",
        {},
    ),
    "json label bool": (
        [("bad.jpg", JPEG), ("bad.json", _json(label=True))],
        ("bad.json", 0),
        "not an integer; found True",
        {},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sample(case: str, tmp_path: Path) -> None:
    members, (named, which), message, options = BAD[case]
    good = shard_members(6)
    path = write_tar(tmp_path / "x.tar", good[:6] + members + good[6:])
    offset = offsets(path)[named][which]
    with pytest.raises(ShardError) as caught:
        build(path, **options)
    assert str(caught.value).startswith(f"{path}, sample 'bad', byte {offset}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.index").exists()

    index = build(path, skip_bad=True, **options)
    assert index.keys(0, len(index)) == [f"s{i:06d}" for i in range(6)]
    [entry] = index.skipped
    assert (entry["shard"], entry["key"], entry["offset"]) == ("x.tar", "bad", offset)
    assert message in entry["reason"]
    assert any("1 bad samples or shards were left out" in line for line in index.warnings())


def test_header_check_lets_a_corrupt_body_pass(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", CUT)])
    assert len(build(path, check="header")) == 1
    with pytest.raises(ShardError, match="16"):
        build(write_tar(tmp_path / "y.tar", [("a.png", DEEP)]), check="header")


def test_duplicate_key(tmp_path: Path) -> None:
    good = shard_members(3)
    path = write_tar(tmp_path / "x.tar", [*good, ("s000001.jpg", JPEG), ("s000001.cls", b"2")])
    first, second = offsets(path)["s000001.jpg"]
    with pytest.raises(
        ShardError, match=rf"sample 's000001', byte {second}: duplicate key; found the key at byte {first} too"
    ):
        build(path)
    index = build(path, skip_bad=True)
    assert index.keys(0, len(index)) == ["s000000", "s000002"]
    assert [entry["key"] for entry in index.skipped] == ["s000001"]


def test_members_of_one_sample_apart(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("b.jpg", JPEG), ("b.cls", b"1"), ("a.cls", b"0")])
    at = offsets(path)
    message = (
        rf"'a', byte {at['a.cls'][0]}: the members of one sample are not adjacent; "
        rf"found the key at byte {at['a.jpg'][0]} too"
    )
    with pytest.raises(ShardError, match=message):
        build(path)
    assert build(path, skip_bad=True).keys(0, 1) == ["b"]


def test_a_key_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("caf\xe9.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    with pytest.raises(ShardError, match="the key is not UTF-8") as caught:
        build(path)
    str(caught.value).encode()


def _damaged(tmp_path: Path, change: Callable[[bytes], bytes], samples: int = 6) -> Path:
    [path] = write_shards(tmp_path, 1, samples)
    path.write_bytes(change(path.read_bytes()))
    return path


def _end(data: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str, int, str]] = {
    # how, message, samples that stay, key of the sample that was cut (its .cls is the last kilobyte)
    "in an image": (
        lambda d: d[: _end(d) - 1024 - 600],
        r"truncated inside 's000005.jpg'; found \d+ of its \d+ bytes",
        5,
        "s000005",
    ),
    "in a header": (lambda d: d[: _end(d) - 1024 + 200], "truncated inside a member's header", 5, "s000005"),
    "between members": (lambda d: d[: _end(d) - 1024], "its end-of-archive marker is missing", 5, "s000005"),
    "in padding": (lambda d: d[: _end(d) - 100], "the tar is truncated; found", 6, ""),
    "marker": (lambda d: d[: _end(d)], "its end-of-archive marker is missing", 6, ""),
    "half a marker": (lambda d: d[: _end(d) + 100], "its end-of-archive marker is missing", 6, ""),
    "header damaged": (
        lambda d: d[: _end(d) - 1024] + bytes([d[_end(d) - 1024] ^ 1]) + d[_end(d) - 1023 :],
        "a member's header can't be read",
        5,
        "s000005",
    ),
    "joined by cat": (lambda d: d + d, "more bytes follow the tar's end-of-archive marker", 6, ""),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_tar(case: str, tmp_path: Path) -> None:
    change, message, left, key = DAMAGE[case]
    path = _damaged(tmp_path, change)
    with pytest.raises(ShardError, match=rf"^{re.escape(str(path))}, byte \d+: .*{message}"):
        build(path)
    index = build(path, skip_bad=True)
    assert index.keys(0, len(index)) == [f"s{i:06d}" for i in range(left)]
    [entry] = index.skipped
    assert re.search(message, entry["reason"])
    assert entry["key"] == key


def test_every_cut_of_a_tar_is_noticed(tmp_path: Path) -> None:
    [path] = write_shards(tmp_path, 1, 3, size=8)
    whole = path.read_bytes()
    end = _end(whole)
    for cut in [*range(0, end + 512, 97), end, end + 511]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"truncated|empty"):
            build(path)


def test_not_a_tar_empty_or_missing(tmp_path: Path) -> None:
    for data, message in (
        (b"", "the tar is empty; found 0 bytes"),
        (b"\x89PNG" * 400, "not a tar file; found first bytes 89 50 4e 47"),
        (bytes(10240), "the tar is empty; found 10240 bytes, all zero"),
        (_of_hidden_files(tmp_path), "the shard has no samples"),
    ):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ShardError, match=message):
            build(tmp_path / "x.tar")


def _of_hidden_files(folder: Path) -> bytes:
    return write_tar(folder / "hidden.tar", [(".DS_Store", b"?"), ("noextension", b"?")]).read_bytes()


@pytest.mark.parametrize(
    ("magic", "command"),
    [
        (gzip.compress(b"tar", mtime=0), "gunzip"),
        (b"BZh9", "bunzip2"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"\x28\xb5\x2f\xfd", "zstd -d"),
    ],
)
def test_compressed(magic: bytes, command: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(magic + bytes(600))
    with pytest.raises(ShardError, match=rf"the tar is compressed. Unpack it first: {command} < {path} > x-unp"):
        build(path)


def test_all_bad(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.cls", b"1")])
    with pytest.raises(ShardError, match="no sound sample in the shards"):
        build(path, skip_bad=True)


def test_a_label_key_that_no_sample_has(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("a.json", _json(label=1))])
    with pytest.raises(ShardError, match=r"found 'lable' nowhere. Check .*json:lable. Members not used: .json \(1\)"):
        build(path, label_key="lable")
    assert build(path, label_key="json:label").labels.tolist() == [1]


def test_the_first_error_in_shard_order_wins_for_any_workers(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 6, [40, 2, 2, 2, 2, 2])
    for path in (paths[0], paths[4]):
        with tarfile.open(path, "a") as tar:
            tar.addfile(tarfile.TarInfo("late.cls"))
    for workers in (1, 4):
        with pytest.raises(ShardError, match=r"shard-0000.tar, sample 'late'"):
            build_index(tmp_path, tmp_path / "index", workers=workers)


@pytest.mark.parametrize("option", ["block_size", "num_classes", "limit", "workers"])
def test_impossible_numbers(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{option}: an impossible number; found 0; allowed: 1 or more"):
        build_index(tmp_path, tmp_path / "index", **{option: 0})
