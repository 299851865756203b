"""Making shards: the same bytes each time, nothing half-written, mistakes told."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.errors import ConfigError, ShardError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.images import decode
from kdpipe.shards.prepare import prepare_digits, prepare_folder
from tests.shards.making import encode, photo


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes, of names and files that people have."""
    root, rng = tmp_path / "tree", np.random.default_rng(0)
    for label, (name, kinds) in enumerate({"cat": "jpg", "Dog": "png", "ähre": "webp"}.items()):
        for i in range(9):
            height, width = (40, 60 + i) if i % 2 else (70, 33)
            path = root / name / ("deep/er" if i == 3 else "") / f"photo.{i}.{kinds}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(photo(rng, height, width, label), kinds))
    (root / "cat" / "photo.1.png").write_bytes(encode(photo(rng, 8, 8), "png"))  # beside photo.1.jpg
    (root / "cat" / ".DS_Store").write_text("?")
    (root / "cat" / "notes.txt").write_text("?")
    (root / "classes.csv").write_text("?")
    return root


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _images(index: Index) -> dict[str, bytes]:
    reader = BlockReader(index)
    return {index.key(row): bytes(reader.image(row)) for row in range(len(index))}


def test_folder(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = prepare_folder(tree, out, name="pets", samples_per_shard=10)
    assert made.shards == {"pets": [out / f"pets-{i:04d}.tar" for i in range(3)]}
    assert made.counts == {"pets": [9, 10, 9]}
    assert made.ignored == {".csv": 1, ".txt": 1, "hidden files": 1}
    assert json.loads((out / "classes.json").read_text("utf-8")) == ["Dog", "cat", "ähre"]
    index = build_index(out, tmp_path / "index", num_classes=3)
    assert index.classes == ["Dog", "cat", "ähre"]
    assert [shard.samples for shard in index.shards] == [10, 10, 8]
    assert np.bincount(index.labels).tolist() == [9, 10, 9]
    images = _images(index)
    assert images["cat/deep/er/photo_3"] == (tree / "cat/deep/er/photo.3.jpg").read_bytes()
    assert images["cat/photo_1"] == (tree / "cat/photo.1.jpg").read_bytes()
    assert images["cat/photo_1-2"] == (tree / "cat/photo.1.png").read_bytes()
    assert images["ähre/photo_8"] == (tree / "ähre/photo.8.webp").read_bytes()
    labels = {index.key(row).split("/")[0]: int(index.labels[row]) for row in range(len(index))}
    assert labels == {"Dog": 0, "cat": 1, "ähre": 2}
    assert index.labels.tolist() != sorted(index.labels.tolist())


def test_folder_is_deterministic(tree: Path, tmp_path: Path) -> None:
    def make(name: str, **options: int) -> dict[str, bytes]:
        prepare_folder(tree, tmp_path / name, samples_per_shard=5, **options)
        return _contents(tmp_path / name)

    first = make("a", workers=1, resize=20)
    assert make("b", workers=4, resize=20) == first
    assert make("c", resize=20, seed=1) != first
    with tarfile.open(fileobj=io.BytesIO(first["train-0000.tar"])) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o444)}


def test_resize(tree: Path, tmp_path: Path) -> None:
    prepare_folder(tree, tmp_path / "out", resize=36)
    index = build_index(tmp_path / "out", tmp_path / "index")
    images = _images(index)
    shapes = {key: decode(data).shape[:2] for key, data in images.items()}
    assert shapes["cat/photo_5"] == (36, int(36 * 65 / 40))
    assert shapes["cat/photo_2"] == (70, 33)  # smaller already: untouched
    assert images["cat/photo_2"] == (tree / "cat/photo.2.jpg").read_bytes()
    assert images["Dog/photo_5"].startswith(b"\x89PNG")
    assert images["ähre/photo_5"].startswith(b"\xff\xd8")
    source = Image.open(io.BytesIO((tree / "Dog/photo.5.png").read_bytes()))
    expected = np.asarray(source.resize((58, 36), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode(images["Dog/photo_5"]), expected)


def test_folder_mistakes(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fails(source: Path, message: str, **options: Any) -> None:
        with pytest.raises((ShardError, ConfigError), match=message):
            prepare_folder(source, out, **options)
        assert not out.exists()
        assert not list(tmp_path.glob(".*"))

    fails(tmp_path / "nowhere", "no such folder; allowed: a folder with one folder of images a class")
    fails(tree / "cat/deep/er", "no class folders")
    (tmp_path / "splits" / "train").mkdir(parents=True)
    (tmp_path / "splits" / "val").mkdir()
    fails(tmp_path / "splits", r"these are splits, not classes; found train, val. Prepare each")
    fails(tree, "samples_per_shard: an impossible number; found 0", samples_per_shard=0)
    (tree / "empty").mkdir()
    fails(tree, r"tree/empty: no images in a class folder")
    (tree / "empty" / "a.jpg").write_bytes(b"<html>")
    fails(tree, r"tree/empty/a.jpg: not a JPEG, PNG or WebP image; found first bytes 3c 68")
    good = encode(photo(np.random.default_rng(0), 64, 64))
    (tree / "empty" / "a.jpg").write_bytes(good[:-200])
    fails(tree, r"tree/empty/a.jpg: the image is truncated or corrupt.*pass --truncated keep")
    fails(tree, "val_split: an impossible share; found 1.0; allowed: 0 to below 1", val_split=1.0)


def test_never_writes_over_anything(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare_folder(tree, out)  # an empty folder is welcome
    before = _contents(out)
    for make in (lambda: prepare_folder(tree, out), lambda: prepare_digits(out)):
        with pytest.raises(ShardError, match=f"^{re.escape(str(out))}: something is there already"):
            make()
    assert _contents(out) == before
    with pytest.raises(ShardError, match="the shards can't be written"):
        prepare_folder(tree, out / "train-0000.tar" / "below")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "out"
    written = prepare_digits(out, labelled=0.1, full=True)
    assert {name: len(paths) for name, paths in written.items()} == {"train": 6, "val": 2, "train-full": 6}
    assert all(path.is_file() for paths in written.values() for path in paths)
    return out


def test_digits(digits: Path, tmp_path: Path) -> None:
    train, full, val = (build_index(digits / n, tmp_path / n, num_classes=10) for n in ("train", "train-full", "val"))
    assert len(train) + len(val) == 1797
    assert abs(len(val) - 0.2 * 1797) < 5
    assert full.unlabelled == val.unlabelled == 0
    assert not full.warnings()
    kept = np.bincount(train.labels[train.labels >= 0], minlength=10)
    np.testing.assert_allclose(kept, 0.1 * np.bincount(full.labels), atol=0.5)
    known = train.labels >= 0
    np.testing.assert_array_equal(train.labels[known], full.labels[known])
    assert np.ptp(np.bincount(val.labels)) <= 2
    # The same images under the same names and keys: a cache made from one serves the other.
    for ours, theirs in zip(train.identity()["shards"], full.identity()["shards"], strict=True):
        assert {k: v for k, v in ours.items() if k != "labels"} == {k: v for k, v in theirs.items() if k != "labels"}
    assert not set(train.keys(0, len(train))) & set(val.keys(0, len(val)))
    assert decode(BlockReader(val).image(0)).shape == (32, 32, 3)


def test_digits_are_deterministic(digits: Path, tmp_path: Path) -> None:
    prepare_digits(tmp_path / "again", labelled=0.1, full=True)
    assert _contents(tmp_path / "again") == _contents(digits)
    prepare_digits(tmp_path / "all", size=8, seed=1)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["classes.json", "train", "val"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction: an impossible share; found 0.0; allowed: between 0 and 1"),
        ({"labelled": 1.5}, "labelled: an impossible share; found 1.5; allowed: above 0, up to 1"),
        ({"size": 0}, "size: an impossible number; found 0; allowed: 1 or more"),
    ],
)
def test_digits_mistakes(options: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_digits(tmp_path / "out", **options)  # type: ignore[arg-type]
