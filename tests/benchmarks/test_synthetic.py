"""The thousand synthetic classes: labels are what is written, other hands in validation, the same bytes each time."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import CLASSES, SIZE, _digits_of, prepare_synthetic
from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.images import decode


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("numbers") / "out"
    written = prepare_synthetic(out, train=2200, val=300, samples_per_shard=500)
    assert {name: len(paths) for name, paths in written.items()} == {"train": 5, "val": 1}
    assert all(path.is_file() for paths in written.values() for path in paths)
    return out


@pytest.fixture(scope="module")
def indexes(numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Index]:
    place = tmp_path_factory.mktemp("indexes")
    return {name: build_index(str(numbers / name), place / name, num_classes=CLASSES) for name in ("train", "val")}


def _pages(index: Index) -> np.ndarray:
    reader = BlockReader(index)
    pages = np.stack([decode(reader.image(row)) for row in range(len(index))])
    assert pages.shape == (len(index), SIZE, SIZE, 3)
    assert (pages == pages[..., :1]).all()
    return pages[..., 0] / 255.0


def _places(pages: np.ndarray) -> Iterator[np.ndarray]:
    """The columns about the first, the middle and the last digit, as vectors."""
    third = np.linspace(0, SIZE - 12, 3).round().astype(int)
    for left in third:
        yield pages[:, :, left : left + 12].reshape(len(pages), -1)


def test_every_thousand_have_each_number_once(indexes):
    labels = indexes["train"].labels
    assert len(labels) == 2200
    for first in (0, 1000):
        assert sorted(labels[first : first + 1000]) == list(range(CLASSES))
        assert sorted(labels[first : first + 100]) != list(labels[first : first + 100])
    assert len(set(labels[2000:])) == 200
    assert labels[2000:].max() > 900


def test_classes_are_called_as_they_are_written(numbers):
    classes = json.loads((numbers / "classes.json").read_text())
    assert (len(classes), classes[0], classes[47], classes[999]) == (1000, "000", "047", "999")


def test_each_place_shows_its_digit(indexes):
    """A line through the pixels about a place, fitted on training images, reads that digit of new hands."""
    known, new = indexes["train"], indexes["val"]
    labels, truth = (np.array(index.labels.tolist()) for index in (known, new))
    pairs = zip((100, 10, 1), _places(_pages(known)), _places(_pages(new)), strict=True)
    for unit, seen, asked in pairs:
        wanted = np.eye(10)[labels // unit % 10]
        gram = seen.T @ seen + 3.0 * np.eye(seen.shape[1])
        read = (asked @ np.linalg.solve(gram, seen.T @ wanted)).argmax(axis=1)
        assert (read == truth // unit % 10).mean() > 0.5


def test_no_two_images_are_alike(indexes):
    pages = np.concatenate([_pages(index) for index in indexes.values()])
    assert len(np.unique(pages.reshape(len(pages), -1), axis=0)) == len(pages)


def test_hands_of_validation_are_not_in_training():
    scripts = _digits_of(0)
    hands = {name: {image.tobytes() for digit in script for image in digit} for name, script in scripts.items()}
    assert not hands["train"] & hands["val"]
    assert {name: sum(map(len, script)) for name, script in scripts.items()} == {"train": 1438, "val": 359}
    assert all(image.shape == (8, 8) for script in scripts.values() for digit in script for image in digit)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def make(name: str, **options: int) -> dict[str, bytes]:
        prepare_synthetic(tmp_path / name, train=40, val=20, **options)
        return {
            str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()
        }

    first = make("a")
    assert sorted(first) == ["classes.json", "train/train-0000.tar", "val/val-0000.tar"]
    assert make("b") == first
    assert make("c", seed=1) != first


def test_never_writes_over_anything(tmp_path):
    (tmp_path / "mine").write_text("!")
    with pytest.raises(ShardError, match="something is there already"):
        prepare_synthetic(tmp_path, train=1, val=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
