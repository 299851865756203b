"""What may be named as a set of shards."""

import json
from pathlib import Path

import fsspec
import pytest

from kdpipe.cache.names import fits_shard
from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, Index, build_index
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
    with pytest.raises(ShardError, match=r"train-0002.tar: a shard that the manifest names is missing"):
        expand(str(info))
    info.write_text("[]")
    with pytest.raises(ShardError, match=r"not a manifest of timm's; allowed: splits by name"):
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


def test_one_shard_named_twice(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"a shard is named twice; found .*train-0000.tar. Name each once"):
        expand(f"{shards}/train-0000.tar::{shards}/train-0000.tar")


def test_shards_of_one_name_in_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the path below the common folder, as one component and reversible; it is found elsewhere too."""
    for seed, folder in enumerate(("a%2F", "a/b")):
        write_shards(tmp_path / "set" / folder, 1, 3, seed=seed)
    index = build_index(f"{tmp_path}/set/**/*.tar", tmp_path / "index")
    assert [shard.name for shard in index.shards] == ["a%252F%2Fshard-0000.tar", "a%2Fb%2Fshard-0000.tar"]
    assert fits_shard(index.shards[1].name)
    assert len(Index.open(index.path)) == 6
    (tmp_path / "set").rename(tmp_path / "moved")
    monkeypatch.setenv("KDPIPE_SHARD_URLS", f"{tmp_path}/moved/**/*.tar")
    moved = Index.open(index.path)
    assert [moved.url(shard) for shard in moved.shards] == [
        f"{tmp_path}/moved/{folder}/shard-0000.tar" for folder in ("a%2F", "a/b")
    ]
    assert len(BlockReader(moved).read(1)) == 3


def test_stars_are_recursive(tmp_path: Path) -> None:
    for folder in (".", "a", "a/b"):
        write_shards(tmp_path / folder, 1, 1, name=f"x{folder.replace('/', '')}")
    assert len(expand(f"{tmp_path}/**/*.tar")) == 3
    assert len(expand(str(tmp_path))) == 1


@pytest.mark.parametrize("name", ["_info.json", "info.json"])
def test_both_names_of_a_manifest(name: str, tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 1)
    splits = {s: {"filenames": [f"shard-000{i}.tar"], "shard_lengths": [1]} for i, s in enumerate(("train", "val"))}
    (tmp_path / name).write_text(json.dumps({"splits": splits}))
    with pytest.raises(ShardError, match=rf"{name}: which split\?; allowed: train, val"):
        expand(str(tmp_path))
    assert [name_of(url) for url in expand(str(tmp_path), "val")] == ["shard-0001.tar"]


def test_a_split_needs_an_info_json(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"a split needs an _info.json; found split val"):
        expand(str(shards), "val")
