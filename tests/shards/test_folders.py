"""Folders as people have them: the label of every image is the name of its folder, and what is bad is told at once."""

import io
import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from kdpipe.errors import IdentityError, ShardError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.classes import disagreement, load_class_map, require_same
from kdpipe.shards.images import decode
from kdpipe.shards.labels import load_table
from kdpipe.shards.prepare import prepare_folder
from tests.shards.making import encode, photo, write_tar
from tests.stages.running import kdpipe, refused

JPEG = encode(photo(np.random.default_rng(0), 64, 64))


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = photo(np.random.default_rng(1), 24, 24)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


# Letters of all scripts, digits, spaces and signs; no separators, no leading dot or space.
_LETTERS = st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\.\u2028\u2029")
_NAMES = st.one_of(st.integers(0, 120).map(str), st.text(_LETTERS | st.just(" "), min_size=1, max_size=8))
_CLASSES = st.lists(
    _NAMES.map(lambda name: unicodedata.normalize("NFC", name.strip())).filter(
        lambda name: name and name.lower() not in ("train", "val", "valid", "validation", "test", "training")
    ),
    min_size=1,
    max_size=6,
    unique_by=str.casefold,
)


@settings(derandomize=True, deadline=None, max_examples=40, database=None)
@given(
    _CLASSES,
    st.data(),
    st.sampled_from(["plain", "natural"]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from(["own", "list", "names in the tar", "names in JSON", "table"]),
)
def test_the_label_of_every_image_is_the_name_of_its_folder(
    names: list[str], data: st.DataObject, order: str, val_split: float, source: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, rng = Path(place), np.random.default_rng(0)
        # An image says which folder it is of.
        of_class = {name: encode(rng.integers(0, 255, (4, 4, 3), np.uint8), "png") for name in names}
        counts = data.draw(st.lists(st.integers(1, 4), min_size=len(names), max_size=len(names)))
        for name, count in zip(names, counts, strict=True):
            tree(folder / "in" / name, {f"{i}.png": of_class[name] for i in range(count)})
        classes = None
        if source == "list":
            shuffled = data.draw(st.permutations(names))
            (folder / "list.json").write_text(json.dumps(shuffled), "utf-8")
            classes = load_class_map(folder / "list.json")
        options = {"class_order": order, "val_split": val_split, "classes": classes, "samples_per_shard": 3}
        made = prepare_folder(folder / "in", folder / "out", **options)  # type: ignore[arg-type]
        assert sum(map(sum, made.counts.values())) == sum(counts)
        for split, paths in made.shards.items():
            index = _index(folder, split, paths[0].parent, source, of_class)
            assert index.classes == made.classes
            reader = BlockReader(index)
            for row in range(len(index)):
                assert bytes(reader.image(row)) == of_class[made.classes[int(index.labels[row])]]


def _index(folder: Path, split: str, shards: Path, source: str, of_class: dict[str, bytes]) -> Index:
    """The index of prepared shards, or of other ones whose labels are names in one of several places."""
    plain = build_index(shards, folder / f"{split}.index")
    if source in ("own", "list"):
        return plain
    by_image = {data: name for name, data in of_class.items()}
    reader, members, rows = BlockReader(plain), [], ["key,label"]
    for row in range(len(plain)):
        data = bytes(reader.image(row))
        members.append((f"{row}.png", data))
        text = by_image[data]
        if source == "names in the tar":
            members.append((f"{row}.name", text.encode()))
        elif source == "names in JSON":
            members.append((f"{row}.json", json.dumps({"a": {"b": text}}).encode()))
        quoted = text.replace('"', '""')
        rows.append(f'{row},"{quoted}"')
    (folder / "table.csv").write_text("\n".join(rows), "utf-8")
    mapping = {name: i for i, name in enumerate(plain.classes or [])}
    (folder / "map.json").write_text(json.dumps(mapping), "utf-8")
    options = {"names in the tar": {"label_key": "name"}, "names in JSON": {"label_key": "json:a.b"}}.get(source, {})
    table = load_table(folder / "table.csv") if source == "table" else None
    write_tar(folder / "other.tar", members)
    names = load_class_map(folder / "map.json")
    out = folder / f"{split}-other.index"
    return build_index(folder / "other.tar", out, class_map=names, labels=table, **options)  # type: ignore[arg-type]


def dirty(root: Path) -> Path:
    """What folders of photographs collect."""
    files = {
        "ant/1.jpg": JPEG,
        "ant/images/2.JPEG": JPEG,
        "ant/._1.jpg": b"?",
        "ant/Thumbs.db": b"?",
        "bee/1.jpg": JPEG,
        "bee/broken.jpg": JPEG[:-300],
        "bee/empty.png": b"",
        "bee/page.jpg": b"<html>",
        "bee/animated.gif": saved("GIF"),
        "cat/1.png": saved("PNG"),
        "cat/deep.png": encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "png"),
        "no images/readme.txt": b"?",
        "__MACOSX/._1.jpg": b"?",
        "lost+found/x": b"?",
        ".ipynb_checkpoints/1.jpg": JPEG,
        ".DS_Store": b"?",
        "loose.jpg": JPEG,
        "labels.csv": b"?",
    }
    return tree(root, files)


BAD = ("no images", "loose.jpg", "broken.jpg", "empty.png", "page.jpg", "animated.gif", "deep.png")


def test_a_dirty_folder_in_one_command_or_two(tmp_path: Path) -> None:
    root, out = dirty(tmp_path / "in"), tmp_path / "out"
    result = kdpipe("prepare", "folder", root, "--out", out)
    listed = [line for line in result.err.splitlines() if line.startswith("  ")]
    assert result.code == 2
    assert len(listed) == len(BAD)
    assert all(any(name in line for line in listed) for name in BAD)
    assert "This is one of 7 problems" in result.err.splitlines()[-1]
    assert not out.exists()

    result = kdpipe("prepare", "folder", root, "--out", out, "--skip-bad")
    assert result.code == 0
    assert "4 samples in 3 classes: ant 2, bee 1, cat 1" in result.out
    assert f"left out: 7, listed in {out}/prepared.json" in result.err
    assert "passed over: 1 .csv, 1 .db, 1 .txt" in result.err
    report = json.loads((out / "prepared.json").read_text())
    assert {Path(entry["file"]).name for entry in report["skipped"]} == set(BAD)
    assert report["classes"] == json.loads((out / "classes.json").read_text()) == ["ant", "bee", "cat"]
    index = build_index(out, tmp_path / "index")
    assert {index.key(i).split("/")[0]: index.labels[i] for i in range(4)} == {"ant": 0, "bee": 1, "cat": 2}

    words = ("--skip-bad", "--convert", "webp", "--truncated", "keep", "--json")
    report = json.loads(kdpipe("prepare", "folder", root, "--out", tmp_path / "all", *words).out)
    assert report["counts"] == {"train": [2, 3, 1]}
    converted = {entry["file"]: (entry["from"], entry["to"]) for entry in report["converted"]}
    assert converted == {"bee/animated.gif": ("GIF", "webp"), "bee/broken.jpg": ("truncated JPEG", "webp")}


def test_nothing_sound(tmp_path: Path) -> None:
    line = refused("prepare", "folder", tree(tmp_path / "in", {"a/1.jpg": b""}), "--out", tmp_path / "o", "--skip-bad")
    assert "no sound image in the folder. All 1 were left out, the first because" in line


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("target", ["png", "webp"])
def test_other_formats_are_converted_without_loss(kind: str, target: str, tmp_path: Path) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    data = saved(kind)
    root = tree(tmp_path / "in", {f"a/1.{kind.lower()}": data})
    with pytest.raises(ShardError, match=rf"not a JPEG, PNG or WebP image.*It is {kind}: pass --convert png"):
        prepare_folder(root, tmp_path / "no")
    prepare_folder(root, tmp_path / "out", convert=target)  # type: ignore[arg-type]
    index = build_index(tmp_path / "out", tmp_path / "index")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(BlockReader(index).image(0)), np.asarray(image.convert("RGB")))


def test_a_truncated_jpeg_is_what_pillow_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = JPEG[: len(JPEG) * 2 // 3]
    prepare_folder(tree(tmp_path / "in", {"a/1.jpg": cut, "a/2.jpg": JPEG}), tmp_path / "out", keep_truncated=True)
    index = build_index(tmp_path / "out", tmp_path / "index")
    images = {index.key(row): bytes(BlockReader(index).image(row)) for row in range(2)}
    assert images["a/2"] == JPEG
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(cut)) as image:
        np.testing.assert_array_equal(decode(images["a/1"]), np.asarray(image.convert("RGB")))


def test_deep_images_are_not_converted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, "TIFF")
    with pytest.raises(ShardError, match="more than 8 bits a channel; found I;16"):
        prepare_folder(tree(tmp_path / "in", {"a/1.tif": buffer.getvalue()}), tmp_path / "out", convert="png")


@pytest.mark.parametrize(("order", "second"), [("plain", "10"), ("natural", "2")])
def test_where_orders_differ_it_is_said(order: str, second: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "in", {f"{n}/1.jpg": JPEG for n in (1, 2, 10)})
    result = kdpipe("prepare", "folder", root, "--out", tmp_path / "out", "--class-order", order)
    assert json.loads((tmp_path / "out" / "classes.json").read_text())[1] == second
    [line] = result.err.splitlines()
    other = {"10": ("'2' in timm's order", "natural"), "2": ("'10' in torchvision's order", "plain")}[second]
    assert line.startswith(f"class 1 is {second!r}, but {other[0]}")
    assert line.endswith(f"--class-order {other[1]}")
    same = tree(tmp_path / "same", {f"{n}/1.jpg": JPEG for n in "ab"})
    assert kdpipe("prepare", "folder", same, "--out", tmp_path / "out2", "--class-order", order).err == ""


def test_one_class_list_for_all_splits(tmp_path: Path) -> None:
    train = tree(tmp_path / "train", {f"{n}/1.jpg": JPEG for n in ("ant", "bee", "cat")})
    val = tree(tmp_path / "val", {f"{n}/1.jpg": JPEG for n in ("ant", "cat")})
    prepare_folder(train, tmp_path / "t")
    index = build_index(tmp_path / "t", tmp_path / "t.index")
    alone = prepare_folder(val, tmp_path / "alone")
    found = build_index(tmp_path / "alone", tmp_path / "alone.index").classes
    assert alone.classes == found == ["ant", "cat"]
    with pytest.raises(IdentityError, match="have other names; found 1 is 'bee' and 'cat'"):
        require_same(index.classes, found, "val", "val")
    for number, names in enumerate((tmp_path / "t" / "classes.json", index.path)):
        result = kdpipe("prepare", "folder", val, "--out", tmp_path / f"v{number}", "--classes", names)
        assert "1 of the classes have no image: bee" in result.err
        again = build_index(tmp_path / f"v{number}", tmp_path / f"v{number}.index")
        assert (again.classes, sorted(again.labels.tolist())) == (index.classes, [0, 2])
    tree(val, {"dog/1.jpg": JPEG})
    line = refused("prepare", "folder", val, "--out", tmp_path / "no", "--classes", index.path)
    assert "val/dog: a folder that is no class of the class list; allowed: ant, bee, cat" in line
    (tmp_path / "turned.json").write_text('["cat", "bee", "ant"]')
    line = refused("index", tmp_path / "t", "--out", tmp_path / "no", "--class-map", tmp_path / "turned.json")
    assert "classes.json beside the shards have other names; found 0 is 'cat' and 'ant', 2 is" in line
    (tmp_path / "t" / "classes.json").write_text('{"made": "by others"}')
    assert "classes.json: not a class list" in refused("index", tmp_path / "t", "--out", tmp_path / "no")
    words = ("--class-map", tmp_path / "turned.json")
    assert kdpipe("index", tmp_path / "t", "--out", tmp_path / "yes", *words).code == 0


def test_the_first_three_that_differ() -> None:
    assert disagreement(["a", "b"], ["a", "b"]) is disagreement(None, ["a"]) is None
    assert (
        disagreement(list("abcde"), list("edcba")) == "0 is 'a' and 'e', 1 is 'b' and 'd', 3 is 'd' and 'b' and 1 more"
    )
    assert disagreement(["a"], ["a", "b"]) == "1 classes and 2"


def test_val_split(tmp_path: Path) -> None:
    files = {f"{name}/{i}.jpg": JPEG for name, count in (("a", 10), ("b", 5), ("c", 1)) for i in range(count)}
    result = kdpipe("prepare", "folder", tree(tmp_path / "in", files), "--out", tmp_path / "out", "--val-split", 0.2)
    assert result.out.splitlines() == [
        f"{tmp_path}/out/train: 1 shard, train-0000.tar to train-0000.tar",
        "  13 samples in 3 classes: a 8, b 4, c 1",
        f"{tmp_path}/out/val: 1 shard, val-0000.tar to val-0000.tar",
        "  3 samples in 3 classes: a 2, b 1, c 0",
    ]
    assert "1 classes of one image are in train alone" in result.err
    train, val = (build_index(tmp_path / "out" / n, tmp_path / n) for n in ("train", "val"))
    assert train.classes == val.classes == ["a", "b", "c"]
    assert not set(train.keys(0, 13)) & set(val.keys(0, 3))
