"""What may be named as a set of shards."""

import json
from pathlib import Path

import fsspec
import pytest

from kdpipe.errors import ShardError
from kdpipe.shards import build_index
from kdpipe.shards.sources import expand, name_of
from tests.shards.making import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, 3, 4, name="train")
    (folder / "notes.txt").write_text("not a shard")
    return folder


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{}/train-{{0000..0002}}.tar", ["0000", "0001", "0002"]),
        ("{}/train-{{0002,0000}}.tar", ["0000", "0002"]),
        ("{}", ["0000", "0001", "0002"]),
        ("{}/", ["0000", "0001", "0002"]),
        ("{}/*-000[12].tar", ["0001", "0002"]),
        ("{}/*", ["0000", "0001", "0002"]),
        ("{}/train-0001.tar", ["0001"]),
        ("{}/train-0001.tar::{}/train-0000.tar", ["0000", "0001"]),
        ("file://{}/train-0001.tar", ["0001"]),
    ],
)
def test_local_forms(shards: Path, source: str, names: list[str]) -> None:
    expected = [str(shards / f"train-{name}.tar") for name in names]
    assert expand(source.replace("{}", str(shards)).replace("{{", "{").replace("}}", "}")) == expected


def test_relative_paths_become_absolute(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    assert expand("train-{0000..0001}.tar")[0] == str(shards / "train-0000.tar")
    assert expand(".")[2] == str(shards / "train-0002.tar")


@pytest.fixture
def remote(shards: Path) -> str:
    fs = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        fs.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    return "memory://bucket/set"


@pytest.mark.parametrize("tail", ["", "/*.tar", "/train-{0000..0002}.tar"])
def test_remote_forms(remote: str, tail: str) -> None:
    urls = expand(remote + tail)
    assert [name_of(url) for url in urls] == [f"train-000{i}.tar" for i in range(3)]
    assert all(url.startswith("memory://") for url in urls)


def _write_info(folder: Path, **lengths: dict[str, int]) -> Path:
    splits = {
        name: {
            "name": name,
            "num_samples": sum(files.values()),
            "filenames": list(files),
            "shard_lengths": list(files.values()),
        }
        for name, files in lengths.items()
    }
    path = folder / "_info.json"
    path.write_text(json.dumps({"splits": splits}))
    return path


def test_info_json(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, [4, 5], name="train")
    write_shards(tmp_path, 1, 3, name="val")
    train = {"train-0000.tar": 4, "train-0001.tar": 5}
    info = _write_info(tmp_path, train=train, val={"val-0000.tar": 3})
    assert [name_of(url) for url in expand(f"{info}:train")] == list(train)
    assert [name_of(url) for url in expand(str(info), "val")] == ["val-0000.tar"]
    assert expand(str(tmp_path), "val") == expand(f"{info}:val")
    assert len(build_index(f"{info}:train", tmp_path / "index")) == 9
    for source in (str(info), str(tmp_path)):  # never train and val together by accident
        with pytest.raises(ShardError, match=r"which split\?; allowed: train, val"):
            expand(source)
    with pytest.raises(ShardError, match="no such split; found test; allowed: train, val"):
        expand(f"{info}:test")
    with pytest.raises(ShardError, match="two splits are named; found train and val"):
        expand(f"{info}:train", "val")
    _write_info(tmp_path, train=train | {"train-0001.tar": 6})
    with pytest.raises(ShardError, match=r"train-0001.tar: the shard is not as long .*found 5 samples; allowed: 6"):
        build_index(info, tmp_path / "other")
    _write_info(tmp_path, train=train | {"train-0002.tar": 1})
    with pytest.raises(ShardError, match=r"train-0002.tar: a shard that _info.json names is missing"):
        expand(str(info))
    info.write_text("[]")
    with pytest.raises(ShardError, match=r"not timm's _info.json; allowed: splits by name"):
        expand(str(info))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}/train-{{0000..0005}}.tar", r"train-0003.tar: a shard of the pattern is missing; found 3 of 6 shards"),
        ("{}/train-{{0000..2.tar", r"not a brace pattern"),
        ("{}/nowhere", r"nowhere: no such file or folder; allowed: a brace pattern, a folder"),
        ("{}/val-*.tar", r"no .tar file matches"),
        ("{}/*.txt", r"no .tar file matches; found .*notes.txt"),
        ("{}/empty", r"no .tar file in the folder"),
        ("{}/_info.json", r"no such file"),
        ("{}/" + "x" * 300, r"x: can't be read \(File name too long\)"),
        ("nosuch://bucket/a.tar", r"the URL can't be opened \(Protocol not known"),
        ("memory://bucket/nowhere", r"no such file or folder"),
        ("memory://bucket/set/train-{{0002..0003}}.tar", r"train-0003.tar: a shard of the pattern is missing"),
    ],
)
def test_mistakes(shards: Path, remote: str, source: str, message: str) -> None:
    (shards / "empty").mkdir(exist_ok=True)
    with pytest.raises(ShardError, match=message) as caught:
        expand(source.replace("{}", str(shards)).replace("{{", "{").replace("}}", "}"))
    assert "\n" not in str(caught.value)


def test_info_json_with_names_that_no_file_can_have(tmp_path: Path) -> None:
    info = _write_info(tmp_path, train={"x" * 300: 5})
    with pytest.raises(ShardError, match=r"x: can't be read \(File name too long\)"):
        expand(str(info))


def test_two_shards_of_one_name(shards: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_shards(tmp_path / folder, 1, 2)
    with pytest.raises(ShardError, match=r"same file name; found .*a/shard-0000.tar and .*b/shard-0000.tar"):
        expand(f"{tmp_path}/*/*.tar")


def test_a_split_needs_an_info_json(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"a split needs an _info.json; found split val"):
        expand(str(shards), "val")
