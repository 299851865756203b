"""A damaged or forged index: refused in one line, or it means what it meant; never another exception, never a wait."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe._util.fingerprint import canonical_json, fingerprint, sha256
from kdpipe.errors import IndexFileError, KdpipeError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.document import DTYPES, MAX_BYTES, MAX_CLASSES
from tests.shards.making import write_shards

DAMAGED, FORGED = 1200, 600


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_shards(folder / "set", 3, [9, 5, 7], size=8, unlabelled=0.2)
    return build_index(folder / "set", folder / "index", block_size=4, num_classes=10).path


@pytest.fixture
def path(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "index"))


def meaning(path: Path) -> tuple[Any, ...]:
    """All that can be asked of an index and of its shards."""
    index = Index.open(path)
    reader = BlockReader(index)
    images = [bytes(image) for block in range(index.blocks) for image in reader.read(block)]
    images += [bytes(reader.image(row)) for row in range(len(index))]
    shards = [(index.shard_of(row).name, index.block_of(row)) for row in range(len(index))]
    index.warnings()
    index.limit(5).identity()
    numbers = (len(index), index.blocks, index.block_size, index.num_classes, index.unlabelled, index.skipped)
    return images, shards, index.labels.tolist(), index.keys(0, len(index)), numbers, index.fingerprint


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes replaced, inserted, left out or repeated, the rest cut off; half the time near the start."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        near = int(rng.choice([128, len(changed)]))
        at = int(rng.integers(0, max(1, min(near, len(changed)))))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                changed[at : at + 1] = bytes([changed[at] ^ (1 << int(rng.integers(0, 8)))] if changed else b"")
            case 2:
                changed[at : at + 1] = rng.bytes(1)
            case 3:
                changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                del changed[at : at + int(rng.integers(1, 9))]
            case 5:
                changed[at:at] = changed[at : at + int(rng.integers(1, 65))]
            case _:
                del changed[at:]
    return bytes(changed)


def test_no_damage_changes_what_an_index_means(good: Path, path: Path) -> None:
    expected, rng = meaning(good), np.random.default_rng(0)
    names = sorted(file.name for file in good.iterdir())
    refused = 0
    for case in range(DAMAGED):
        name = names[case % len(names)]
        data = (good / name).read_bytes()
        (path / name).write_bytes(damage(data, rng))
        try:
            found = meaning(path)
        except KdpipeError:
            refused += 1
        else:
            assert found == expected, (case, name)
        (path / name).write_bytes(data)
    assert refused > 0.9 * DAMAGED
    assert meaning(path) == expected


STRANGE: list[Any] = [
    *(-1, 0, 1, 3, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**400, 1.5, 1e308, True, None),
    *("", "x", "../x", "/etc/passwd", "a\0b", "\ud800", "\x1b[31m", "é" * 300, "s3://", "reference::x://y"),
    *([], {}, [[]], [0] * 50, {"a": 1}),
]


def forge_document(document: dict[str, Any], rng: np.random.Generator) -> None:
    """Replace, remove or add a value somewhere."""
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = keys[int(rng.integers(0, len(keys)))]
        if isinstance(place[key], dict | list) and len(place[key]) and rng.random() < 0.8:
            place = place[key]
            continue
        match int(rng.integers(0, 4)):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place["new"] = STRANGE[int(rng.integers(0, len(STRANGE)))]
            case 1:
                place.append(place[key])
            case 2 if isinstance(place[key], int):
                place[key] += int(rng.integers(-3, 4))
            case _:
                place[key] = STRANGE[int(rng.integers(0, len(STRANGE)))]
        return


def forge_array(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change numbers, order, length, shape or type."""
    forged, at = array.copy(), int(rng.integers(0, len(array)))
    limits = np.iinfo(array.dtype)
    match int(rng.integers(0, 8)):
        case 0 | 1 | 2:
            values = [limits.min, limits.max, 0, 1, 7]
            forged[at] = values[int(rng.integers(0, len(values)))]
        case 3:
            forged[at] += np.array(int(rng.integers(1, 5))).astype(array.dtype)
        case 4:
            forged = forged[::-1].copy()
        case 5:
            forged = forged[:at]
        case 6:
            forged = np.concatenate([forged, forged])
        case _:
            forged = forged.astype([np.float32, np.int8, np.uint64, object][int(rng.integers(0, 4))])
    return forged


def seal(path: Path, document: dict[str, Any]) -> None:
    document.pop("digest", None)
    try:
        sealed = canonical_json(document | {"digest": fingerprint(document)})
    except ValueError:  # more digits than Python writes
        return
    (path / "index.json").write_bytes(sealed)


def test_no_forgery_does_more_than_be_refused(good: Path, path: Path) -> None:
    """Digests are anybody's to compute: a forged index may lie about labels, but not about places."""
    rng, began = np.random.default_rng(1), time.monotonic()
    refused, longest, slowest = 0, 0, 0.0
    for case in range(FORGED):
        document = json.loads((good / "index.json").read_bytes())
        name = None
        if case % 2:
            forge_document(document, rng)
        else:
            name = list(DTYPES)[case // 2 % len(DTYPES)]
            forged = forge_array(np.load(good / f"{name}.npy"), rng)
            np.save(path / f"{name}.npy", forged, allow_pickle=True)
            about = {"shape": list(forged.shape), "sha256": sha256((path / f"{name}.npy").read_bytes())}
            document["arrays"][name] |= about | ({"dtype": forged.dtype.str} if rng.random() < 0.5 else {})
        seal(path, document)
        at = time.monotonic()
        try:
            meaning(path)
        except KdpipeError as error:
            longest, refused = max(longest, len(str(error))), refused + str(error).isprintable()
        slowest = max(slowest, time.monotonic() - at)
        for file in ("index.json", f"{name}.npy" if name else "index.json"):
            shutil.copy(good / file, path / file)
    assert refused > 0.5 * FORGED
    assert longest < 9000
    assert slowest < 5
    assert time.monotonic() - began < 120


def _number(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({field: value})


def _shard(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["shards"][1].update({field: value})


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (_number("block_size", 0), "block_size"),
        (_number("block_size", 4.0), "block_size"),
        (_number("num_classes", MAX_CLASSES + 1), f"num_classes: .*{MAX_CLASSES}"),
        (_number("num_classes", 3), "labels.npy: .*a label that is not between -1 and 2"),
        (_number("shards", []), "shards"),
        (_number("more", 1), "more"),
        (_shard("size", -1), r"shards\.1\.size"),
        (_shard("size", 100), "a range of bytes outside of its shard"),
        (_shard("samples", 6), "first samples"),
        (_shard("first", 8), "first samples"),
        (_shard("blocks", True), r"shards\.1\.blocks"),
        (_shard("name", "../x.tar"), "is not the file name of"),
        (_shard("sha256", "0"), r"shards\.1\.sha256"),
    ],
)
def test_forged_fields_are_named(forge: Callable[[dict[str, Any]], None], message: str, path: Path) -> None:
    document = json.loads((path / "index.json").read_bytes())
    forge(document)
    seal(path, document)
    with pytest.raises(IndexFileError, match=message):
        meaning(path)


def test_nan_deep_nesting_and_endless_files_are_refused_at_once(path: Path) -> None:
    file = path / "index.json"
    good = file.read_bytes()
    for data in (good.replace(b'"block_size":4', b'"block_size":NaN'), b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**6):
        file.write_bytes(data)
        with pytest.raises(IndexFileError, match="the index is damaged"):
            Index.open(path)
    os.truncate(file, MAX_BYTES + 1)
    with pytest.raises(IndexFileError, match=f"at most {MAX_BYTES} are read"):
        Index.open(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["index.json", "labels.npy", "block_first.npy"])
def test_a_pipe_is_not_waited_for(name: str, path: Path) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(IndexFileError):
        meaning(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_for_a_shard_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set" / "a.tar")
    with pytest.raises(KdpipeError, match="not a regular file"):
        build_index(tmp_path / "set", tmp_path / "index")


def test_an_array_is_compared_with_its_digest_before_it_is_used(path: Path) -> None:
    labels = np.load(path / "labels.npy")
    labels[0] = (labels[0] + 1) % 10
    np.save(path / "labels.npy", labels)
    index = Index.open(path)
    assert index.keys(0, 2) == ["s000000", "s000001"]
    for use in (
        lambda: index.labels,
        lambda: index.unlabelled,
        index.identity,
        index.verify,
        lambda: index.check_labels(9),
    ):
        with pytest.raises(IndexFileError, match=r"labels.npy: an array of the index is damaged"):
            use()
