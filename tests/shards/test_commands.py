"""`kdpipe index` and `kdpipe prepare` as one types them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdpipe_stages.cli import main
from tests.shards.making import shard_members, write_shards, write_tar


def kdpipe(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", 2, 30, unlabelled=0.1, classes=5)
    return tmp_path / "set"


def test_index_prints_a_summary(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.index"
    result = kdpipe("index", folder / "shard-{0000..0001}.tar", "--out", out, "--num-classes", 5, "--block-size", 16)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert first == f"{out}: 2 shards, 60 samples, 5 classes, 6 unlabelled, 0 skipped, {size} bytes"
    assert second.startswith("fingerprint ")
    assert "warning: 6 of 60 samples have no label" in result.stderr
    again = kdpipe("index", folder, "--out", out, "--num-classes", 5, "--block-size", 16)
    assert again.stdout == result.stdout.replace(str(out), f"{out} (unchanged)", 1)


def test_index_as_json(folder: Path, tmp_path: Path) -> None:
    write_tar(folder / "bad.tar", [*shard_members(3), ("z.cls", b"1")])
    result = kdpipe("index", folder, "--out", tmp_path / "i", "--skip-bad", "--json", "--workers", 1)
    report = json.loads(result.stdout)
    assert (report["shards"], report["samples"], report["unlabelled"]) == (3, 63, 6)
    assert [(entry["shard"], entry["key"]) for entry in report["skipped"]] == [("bad.tar", "z")]
    assert len(report["fingerprint"]) == 64
    head, row, *warnings = result.stderr.splitlines()
    assert head == f"left out: 1, listed in {tmp_path / 'i'}/index.json"
    assert row.startswith("  bad.tar z  no image in the sample; found .cls. Leave files that are no samples out")
    assert len(report["warnings"]) == len(warnings) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{set}/nowhere"], "nowhere: no such file or folder"),
        (["{set}", "--num-classes", "3"], "label out of range"),
        (["{set}", "--split", "val"], "a split needs an _info.json"),
        (["{set}", "--label-key", "label"], "no sample has a label"),
        (["{set}", "--label-key", ":x"], "no place of labels"),
        (["{set}", "--class-map", "{set}/none"], "the class list can't be read"),
        (["{set}", "--labels", "{set}/none"], "the labels can't be read"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(words: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    result = kdpipe("index", *[word.replace("{set}", str(folder)) for word in words], "--out", tmp_path / "i")
    assert result.exit_code == 2
    *listed, line = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert all(one.startswith("  ") and message in one for one in listed)
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_prepare(tmp_path: Path) -> None:
    result = kdpipe("prepare", "digits", "--out", tmp_path / "d", "--labelled", 0.1, "--full")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{tmp_path}/d/train: 6 shards",
        f"{tmp_path}/d/val: 2 shards",
        f"{tmp_path}/d/train-full: 6 shards",
    ]
    again = kdpipe("prepare", "digits", "--out", tmp_path / "d")
    assert (again.exit_code, again.stderr) == (
        2,
        f"error: {tmp_path}/d: something is there already. Choose another --out\n",
    )
    tree = tmp_path / "tree"
    for name in ("a", "b"):
        (tree / name).mkdir(parents=True)
        (tree / name / "1.jpg").write_bytes(shard_members(1)[0][1])
    result = kdpipe("prepare", "folder", tree, "--out", tmp_path / "f", "--resize", 16, "--samples-per-shard", 1)
    assert result.stdout.splitlines() == [
        f"{tmp_path}/f: 2 shards, train-0000.tar to train-0001.tar",
        "  2 samples in 2 classes: a 1, b 1",
    ]
