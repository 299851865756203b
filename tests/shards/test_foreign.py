"""Tars and manifests as other tools write them: read with the right labels, or refused for what they are."""

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.shards.classes import load_class_map
from kdpipe.shards.labels import load_table
from tests.shards.making import encode, photo, write_shards, write_tar
from tests.stages.running import kdpipe, refused

Members = list[tuple[str, bytes]]
A, B = (encode(photo(np.random.default_rng(i), 24, 24)) for i in range(2))
PNG = encode(photo(np.random.default_rng(2), 8, 8), "png")


def build(path: Path, **options: object) -> Index:
    return build_index(path, path.with_suffix(".index"), overwrite=True, **options)  # type: ignore[arg-type]


def tar(folder: Path, *members: tuple[str, bytes]) -> Path:
    return write_tar(folder / "x.tar", members)


def link(path: Path, name: str, target: str, kind: bytes) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)


def test_hard_links_are_the_files_that_they_link_to(tmp_path: Path) -> None:
    path = tar(tmp_path, ("./a.cls", b"7"), ("./a.jpg", A))
    link(path, "./b.cls", "./a.cls", tarfile.LNKTYPE)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("./b.jpg")
        info.size = len(B)
        archive.addfile(info, io.BytesIO(B))
    link(path, "./c.cls", "a.cls", tarfile.LNKTYPE)
    link(path, "./c.jpg", "b.jpg", tarfile.LNKTYPE)
    index = build(path, block_size=1)
    assert (index.keys(0, 3), index.labels.tolist()) == (["./a", "./b", "./c"], [7, 7, 7])
    assert [bytes(BlockReader(index).image(row)) for row in range(3)] == [A, B, B]
    link(path, "./d.jpg", "elsewhere.jpg", tarfile.LNKTYPE)
    with pytest.raises(ShardError, match=r"'./d'.*is a hard link to 'elsewhere.jpg', which doesn't come before it"):
        build(path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar command")
def test_what_gnu_tar_makes_of_linked_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jpg").write_bytes(A)
    (source / "a.cls").write_text("3")
    (source / "b.cls").hardlink_to(source / "a.cls")
    (source / "b.jpg").hardlink_to(source / "a.jpg")
    command = ["tar", "--sort=name", "-cf", str(tmp_path / "x.tar"), "-C", str(source), "."]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("another tar than GNU's")
    assert build(tmp_path / "x.tar").labels.tolist() == [3, 3]


@pytest.mark.parametrize("suffix", ["jpg", "cls"])
def test_symbolic_links_are_named(suffix: str, tmp_path: Path) -> None:
    path = tar(tmp_path, ("ok.jpg", A), ("a.jpg" if suffix == "cls" else "a.cls", A if suffix == "cls" else b"1"))
    link(path, f"a.{suffix}", f"/data/a.{suffix}", tarfile.SYMTYPE)
    message = rf"'a', byte \d+: member .{suffix} is a symbolic link to '/data/a.{suffix}'.*--dereference"
    with pytest.raises(ShardError, match=message):
        build(path)
    assert build(path, skip_bad=True).keys(0, 1) == ["ok"]


@pytest.mark.parametrize("followed", [False, True])
def test_sparse_members_are_named(followed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("z.jpg")
        info.pax_headers = {"GNU.sparse.size": "1048576", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512"}
        info.size = 512
        archive.addfile(info, io.BytesIO(A[:512]))
        if followed:
            info = tarfile.TarInfo("ok.jpg")
            info.size = len(B)
            archive.addfile(info, io.BytesIO(B))
    with pytest.raises(ShardError, match=r"'z', byte \d+: member .jpg is stored sparse, in pieces"):
        build(path)
    if followed:
        index = build(path, skip_bad=True)
        assert (index.keys(0, len(index)), bytes(BlockReader(index).image(0))) == (["ok"], B)


# What lies where a shard should be: bytes, what it is named, and advice.
OTHERS = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a git-LFS pointer", "git lfs pull"),
    "HTML": (b"<html><body>403 Forbidden</body></html>" * 40, "an HTML page", "Download the shard again"),
    "doctype": (b"\n<!DOCTYPE html>" + b" " * 600, "an HTML page", "your access"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML page", "your access"),
    "empty": (bytes(10240), "the tar is empty", "all zero"),
    "nothing": (b"", "the tar is empty", "0 bytes"),
    "text": (b"hello" * 200, "not a tar file", "first bytes 68"),
    "zip": (b"PK\x03\x04" + bytes(600), "a zip archive", "Unpack it"),
    "gzip": (b"\x1f\x8b" + bytes(600), "the tar is compressed", "gunzip < "),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_files_are_named_and_skipped_as_whole_shards(case: str, tmp_path: Path) -> None:
    data, what, advice = OTHERS[case]
    write_shards(tmp_path / "set", 2, 3)
    (tmp_path / "set" / "other.tar").write_bytes(data)
    line = refused("index", tmp_path / "set", "--out", tmp_path / "index")
    assert f"other.tar{', byte 0' if case == 'nothing' else ''}: {what}" in line
    assert advice in line
    for unchanged in ("", " (unchanged)"):
        result = kdpipe("index", tmp_path / "set", "--out", tmp_path / "index", "--skip-bad")
        assert f"index{unchanged}: 2 shards, 6 samples" in result.out
        assert f"other.tar  {what}" in result.err
    index = Index.open(tmp_path / "index")
    assert [(e["shard"], e["key"]) for e in index.skipped] == [("other.tar", "")]


def test_the_advice_for_compressed_shards_works(tmp_path: Path) -> None:
    import gzip

    [path] = write_shards(tmp_path, 1, 3)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ShardError) as caught:
        build(path)
    command = str(caught.value).split("Unpack it first: ")[1]
    subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path)
    assert len(build(tmp_path / "shard-0000-unpacked.tar")) == 3


# Members of the first sample; options; the label, or what is said of it.
LABELS: dict[str, tuple[str, bytes, dict[str, object], int]] = {
    "class": ("class", b"3", {"label_key": "class"}, 3),
    "text": ("txt", b"3\n", {"label_key": ".txt"}, 3),
    "output.cls": ("output.cls", b"3", {"label_key": "output.cls"}, 3),
    "wildcard": ("5.cls", b"3", {"label_key": "*.cls"}, 3),
    "nested": ("json", b'{"meta": {"label": 3}}', {"label_key": "json:meta.label"}, 3),
    "dotted field": ("json", b'{"a.b": {"c": 3}}', {"label_key": "json:a.b.c"}, 3),
    "text in JSON": ("json", b'{"label": "3"}', {}, 3),
    "byte order mark": ("cls", b"\xef\xbb\xbf3", {}, 3),
    "byte order mark of JSON": ("json", b'\xef\xbb\xbf{"label": 3}', {}, 3),
    "-1": ("cls", b"-1", {}, -1),
    "-1 in JSON": ("json", b'{"label": -1}', {}, -1),
    "'-1' in JSON": ("json", b'{"label": "-1"}', {}, -1),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels(case: str, tmp_path: Path) -> None:
    suffix, data, options, label = LABELS[case]
    path = tar(tmp_path, ("a.jpg", A), (f"a.{suffix}", data))
    assert build(path, **options).labels.tolist() == [label]


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        ("output.cls", b"3", "1 of 1 samples have no label; members not used: .output.cls (1)"),
        ("txt", b"a photograph", "members not used: .txt (1). --label-key names another place of labels"),
        (
            "5.cls",
            b"3",
            "members not used: .5.cls (1). --label-key names another place of labels; keys end at",
        ),
        ("json", b'{"caption": "x"}', "members not used: .json (1)"),
    ],
)
def test_members_that_were_not_used_are_named(suffix: str, data: bytes, said: str, tmp_path: Path) -> None:
    index = build(tar(tmp_path, ("a.jpg", A), (f"a.{suffix}", data)))
    assert index.labels.tolist() == [-1]
    assert said in index.warnings()[0]


def test_several_labels_for_one_pattern(tmp_path: Path) -> None:
    path = tar(tmp_path, ("a.jpg", A), ("a.1.cls", b"3"), ("a.2.cls", b"4"))
    with pytest.raises(ShardError, match=r"several members are the label; found .1.cls .2.cls; allowed: one"):
        build(path, label_key="*.cls")


CLASS_MAPS = {
    "wnids.txt": "n01440764\nn01443537\n",
    "list.json": '["n01440764", "n01443537"]',
    "numbers.json": '{"n01443537": 1, "n01440764": 0}',
    "imagenet.json": '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
    "map.csv": "name,number\nn01443537,1\nn01440764,0\n",
    "turned.csv": "0,n01440764\n1,n01443537\n",
    "bom.tsv": "\ufeffn01440764\t0\nn01443537\t1\n",
}


@pytest.mark.parametrize("name", CLASS_MAPS)
def test_class_maps(name: str, tmp_path: Path) -> None:
    path = tar(tmp_path, ("a.jpg", A), ("a.cls", b"n01443537\n"), ("b.jpg", B), ("b.cls", b"n01440764"))
    with pytest.raises(ShardError, match=r"the label is not an integer; found 'n01443537'.*to numbers by --class"):
        build(path)
    (tmp_path / name).write_text(CLASS_MAPS[name])
    index = build(path, class_map=load_class_map(tmp_path / name))
    assert (index.labels.tolist(), index.classes, index.num_classes) == ([1, 0], ["n01440764", "n01443537"], 2)
    again = load_class_map(index.path)
    assert again.names == index.classes


def test_labels_that_a_class_map_lacks(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('["cat", "dog"]')
    names, tarred = load_class_map(tmp_path / "c.json"), tar(tmp_path, ("a.jpg", A), ("a.cls", b"bee"))
    with pytest.raises(ShardError, match="the label is no class of the class map; found 'bee'"):
        build(tarred, class_map=names)
    assert build(tar(tmp_path, ("a.jpg", A), ("a.cls", b"1")), class_map=names).labels.tolist() == [1]
    with pytest.raises(ShardError, match="label out of range; found 2; allowed: 0 to 1"):
        build(tar(tmp_path, ("a.jpg", A), ("a.cls", b"2")), class_map=names)
    # In a list of names an integer is a number, whatever the names are; in a map it is a name.
    (tmp_path / "n.json").write_text('["1", "10", "2"]')
    names, tarred = load_class_map(tmp_path / "n.json"), tar(tmp_path, ("a.jpg", A), ("a.cls", b"2"))
    assert build(tarred, class_map=names).labels.tolist() == [2]
    (tmp_path / "n.json").write_text('{"1": 0, "10": 1, "2": 2}')
    names, tarred = load_class_map(tmp_path / "n.json"), tar(tmp_path, ("a.jpg", A), ("a.json", b'{"label": 10}'))
    assert build(tarred, class_map=names).labels.tolist() == [1]
    with pytest.raises(ShardError, match="no class of the class map; found '0'"):
        build(tar(tmp_path, ("a.jpg", A), ("a.cls", b"0")), class_map=names)
    assert build(tar(tmp_path, ("a.jpg", A), ("a.cls", b"-1")), class_map=names).labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('["a", "a"]', "'a' has two numbers, 0 and 1"),
        ('{"a": -1}', "'a' has the number -1"),
        ('{"a": 99999999999}', "'a' has the number 99999999999"),
        ('["a\\u001b[31m"]', "is no name of 1 to 256 printable"),
        ("[]", "it has no names"),
        ("3", "no list or object of names"),
        ('{"a": "b"}', "'a' is no number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_class_maps_that_are_none(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ShardError, match=f"not a class list .*{why}") as caught:
        load_class_map(tmp_path / "c.json")
    assert str(caught.value).isprintable()


def test_labels_from_a_table(tmp_path: Path) -> None:
    path = tar(tmp_path, ("d/a.jpg", A), ("b.jpg", B), ("b.cls", b"1"), ("c.jpg", B))
    (tmp_path / "labels.csv").write_text('key,label\nd/a,cat\n"b",dog\n')
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    table, names = load_table(tmp_path / "labels.csv"), load_class_map(tmp_path / "names.txt")
    assert build(path, labels=table, class_map=names).labels.tolist() == [0, 1, -1]
    (tmp_path / "labels.csv").write_text("a,1\na,2\n")
    with pytest.raises(ShardError, match="a key with two labels; found 'a': '1' and '2'"):
        load_table(tmp_path / "labels.csv")


def test_one_of_several_images(tmp_path: Path) -> None:
    path = tar(tmp_path, ("a.jpg", A), ("a.seg.png", PNG), ("a.cls", b"1"))
    with pytest.raises(ShardError, match=r"several images in one sample; found .jpg .seg.png.*by --image-key"):
        build(path)
    assert bytes(BlockReader(build(path, image_key="jpg")).image(0)) == A
    assert bytes(BlockReader(build(path, image_key="*.png")).image(0)) == PNG
    with pytest.raises(ShardError, match=r"no image in the sample; found .jpg .seg.png .cls; allowed: --image-key w"):
        build(path, image_key="webp")


def test_dots_in_keys_are_explained(tmp_path: Path) -> None:
    path = tar(tmp_path, ("img.0000.jpg", A), ("img.0000.cls", b"1"), ("img.0001.jpg", B), ("img.0001.cls", b"2"))
    with pytest.raises(ShardError, match=r"several images .*Keys end at the first dot of a file name"):
        build(path)


def test_files_that_are_no_samples_are_named(tmp_path: Path) -> None:
    path = tar(tmp_path, ("README.md", b"hi"), ("a.jpg", A), ("a.cls", b"1"), ("classes.json", b"{}"))
    result = kdpipe("index", path, "--out", tmp_path / "i")
    assert result.code == 2
    assert "sample 'README', byte 0: no image in the sample; found .md" in result.err
    assert "sample 'classes'" in result.err
    assert build(path, skip_bad=True).labels.tolist() == [1]


@pytest.mark.parametrize(("kind", "name"), [("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("AVIF", "AVIF")])
def test_other_image_formats_are_named(kind: str, name: str, tmp_path: Path) -> None:
    from PIL import Image, features

    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    path = tar(tmp_path, (f"a.{kind.lower()}", buffer.getvalue()))
    with pytest.raises(ShardError, match=rf"not a JPEG, PNG or WebP image.*It is {name}: kdpipe prepare .*--convert"):
        build(path)


def _timm(folder: Path, **extra: object) -> None:
    rows = [(0, 5), (1, -1), (0, 5), (1, -1)]
    for shard in range(2):
        members: Members = []
        for i, (label, other) in enumerate(rows[shard::2] if shard > 1 else rows[2 * shard : 2 * shard + 2]):
            document = json.dumps({"alt": other, "label": label}).encode()
            members += [(f"{shard}{i}.jpg", A), (f"{shard}{i}.cls", b"%d" % label), (f"{shard}{i}.json", document)]
        write_tar(folder / f"x-{shard}.tar", members)
    split = {"name": "train", "filenames": ["x-0.tar", "x-1.tar"], "shard_lengths": [2, 2], "num_samples": 4}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": split | extra}}))


def test_alt_label_as_timm_reads_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    _timm(tmp_path / "set")
    assert build(tmp_path / "set").labels.tolist() == [0, 1, 0, 1]
    _timm(tmp_path / "set", alt_label="alt")
    index = build(tmp_path / "set")
    assert index.labels.tolist() == [5, 5]
    assert "2 samples were left out: their alt_label is negative" in index.warnings()
    limited = build(tmp_path / "set", limit=2)
    assert limited.keys(0, 2) == ["00", "10"]
    _timm(tmp_path / "set", alt_label="nowhere")
    with pytest.raises(ShardError, match=r"no alt_label; allowed: field 'nowhere' of .json, which timm's manifest"):
        build(tmp_path / "set")
    with pytest.raises(ShardError, match="the manifest names the labels by alt_label; found nowhere"):
        build(tmp_path / "set", label_key="cls")


def test_all_problems_at_once(tmp_path: Path) -> None:
    """In the first run everything that is wrong, in the second, with --skip-bad, the rest."""
    write_shards(tmp_path / "set", 2, 3)
    write_tar(tmp_path / "set" / "bad.tar", [("a.jpg", b"<html>"), ("b.jpg", A), ("c.cls", b"1"), ("d.jpg", B[:300])])
    (tmp_path / "set" / "lfs.tar").write_bytes(OTHERS["LFS"][0])
    result = kdpipe("index", tmp_path / "set", "--out", tmp_path / "index")
    *lines, last = result.err.splitlines()
    assert (result.code, len([line for line in lines if line.startswith("  ")])) == (2, 4)
    assert [word in result.err for word in ("sample 'a'", "sample 'b'", "sample 'c'", "sample 'd'", "lfs.tar")] == [
        *(True, False, True, True, True)
    ]
    assert last.startswith("error: ")
    assert last.endswith("one of 4 problems: repair them, or leave all of them out by --skip-bad")
    result = kdpipe("index", tmp_path / "set", "--out", tmp_path / "index", "--skip-bad")
    assert (result.code, Index.open(tmp_path / "index").keys(0, 1)) == (0, ["b"])
    assert f"left out: 4, listed in {tmp_path}/index/index.json" in result.err
    (tmp_path / "many").mkdir()
    write_tar(tmp_path / "many" / "x.tar", [(f"{i}.cls", b"1") for i in range(50)])
    result = kdpipe("index", tmp_path / "many", "--out", tmp_path / "index2")
    assert len([line for line in result.err.splitlines() if line.startswith("  ")]) == 20
