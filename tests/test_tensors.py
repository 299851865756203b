"""safetensors files: what was written comes back, or a line that says why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from kdpipe._util import tensors
from kdpipe.errors import KdpipeError, TeacherError
from kdpipe.models import METADATA_KEY, read_metadata, weights_digest
from kdpipe.models.state import read_state
from tests.mutations import join, mutations, split
from tests.trainer import tiny

CONTENT = {"model": "tests.trainer.tiny:model", "mean": [0.1, 0.2, 0.3], "num_classes": 4, "evaluation": {"top1": 0.5}}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    tensors.write(path, tiny.model(4).state_dict(), METADATA_KEY, CONTENT)
    return path


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def remarks(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "kdpipe"]


class TestDigest:
    def test_content_comes_back(self, written, caplog):
        found, header = tensors.read(written, METADATA_KEY)
        assert header.content == CONTENT == read_metadata(written)
        assert weights_digest(tiny.model(4)) != header.tensors_sha256 == tensors.digest(found)
        assert remarks(caplog) == []

    def test_every_bit_of_dtype_shape_name_and_value_counts(self):
        one = {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.int32)}
        others = [
            {**one, "a": torch.zeros(3, 2)},
            {**one, "b": torch.zeros(2)},
            {**one, "a": -one["a"]},
            {"a": one["a"]},
            {"c": one["a"], "b": one["b"]},
        ]
        assert len({tensors.digest(t) for t in (one, *others)}) == 6

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.int64])
    def test_of_every_dtype_and_of_empty_tensors(self, tmp_path, dtype):
        kept = {"a": torch.ones(3).to(dtype), "scalar": torch.ones(()).to(dtype), "empty": torch.zeros(0, 4).to(dtype)}
        tensors.write(tmp_path / "w", kept, "key", {})
        found, _ = tensors.read(tmp_path / "w", "key")
        assert tensors.digest(found) == tensors.digest(kept)

    def test_of_content_that_json_changes(self, tmp_path):
        tensors.write(tmp_path / "w", {"a": torch.zeros(1)}, "key", {"sizes": {10: (1, 2), 9: 1e22}})
        assert tensors.read_header(tmp_path / "w", "key").content == {"sizes": {"10": [1, 2], "9": 1e22}}

    def test_same_content_same_bytes(self, written, tmp_path):
        found, header = tensors.read(written, METADATA_KEY)
        tensors.write(tmp_path / "again", found, METADATA_KEY, header.content)
        assert (tmp_path / "again").read_bytes() == written.read_bytes()

    def test_mutations_are_refused_or_change_nothing(self, written, caplog):
        data, (kept, _) = written.read_bytes(), tensors.read(written, METADATA_KEY)
        refused, unchecked = [], []
        for what, mutated in mutations(data, 800, seed=11):
            written.write_bytes(mutated)
            caplog.clear()
            tensors._remarked.clear()
            try:
                content, state = read_metadata(written), read_state(written)
            except KdpipeError as e:
                refused.append(str(e))
                continue
            if remarks(caplog):
                # Without anything that kdpipe wrote, a file can't be told from another program's.
                unchecked.append(what)
            assert content == (CONTENT if unchecked[-1:] != [what] else {}), what
            assert same(state, kept), what
        assert len(refused) > 750
        assert all("\n" not in line and len(line) < 700 for line in refused)
        assert all(what.endswith(("_edit_json", "_edit")) for what in unchecked)
        assert len(unchecked) < 20


class TestRemark:
    def test_once_for_a_file_without_a_digest(self, tmp_path, caplog):
        path = tmp_path / "theirs.safetensors"
        save_file({"a": torch.zeros(2)}, path)
        for _ in range(2):
            assert read_state(path)["a"].tolist() == [0, 0]
        assert remarks(caplog) == [f"{path}: no digest: its content can't be checked"]

    def test_for_weights_of_an_older_version(self, tmp_path, caplog):
        path = tmp_path / "old.safetensors"
        save_file({"a": torch.zeros(2)}, path, {METADATA_KEY: json.dumps(CONTENT)})
        read_state(path)
        assert read_metadata(path) == CONTENT
        assert remarks(caplog) == [f"{path}: no digest: its content can't be checked"]

    def test_only_in_the_first_of_several_processes(self, tmp_path, caplog, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        save_file({"a": torch.zeros(2)}, tmp_path / "theirs.safetensors")
        read_state(tmp_path / "theirs.safetensors")
        assert remarks(caplog) == []


def entry(dtype: str = "F32", shape: tuple[int, ...] = (1,), offsets: tuple[int, int] = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "empty": (b"", "the file is empty"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n",
        "git-LFS pointer.*git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html><html>" + bytes(300), "a web page, not weights"),
    "zip": (b"PK\x03\x04" + bytes(300), r"give it the suffix \.pth"),
    "short": (b"abc", "not a whole safetensors file"),
    "length": (b"\xff" * 8 + b"{}", "not a whole safetensors file"),
    "long header": ((2**25).to_bytes(8, "little") + bytes(2**25), "33554432 bytes, at most 16777216"),
    "list": (join([], b""), "not a safetensors file as it should be: invalid JSON"),
    "number": (join(3, b""), "not a safetensors file"),
    "deep": ((200_005).to_bytes(8, "little") + b'{"a":' + b"[" * 200_000, "not a safetensors file"),
    "metadata": (join({"__metadata__": [1]}, b""), "not a safetensors file"),
    "overlap": (join({"a": entry(), "b": entry()}, bytes(4)), "invalid offset"),
    "beyond": (join({"a": entry(offsets=(0, 8))}, bytes(4)), "not a safetensors file"),
    "product": (join({"a": entry(shape=(2**62, 2**62))}, bytes(4)), "overflow"),
    "dtype": (join({"a": entry("F6_E2M3", (4,), (0, 3))}, bytes(3)), "not a safetensors file"),
    "kdpipe list": (join({"__metadata__": {METADATA_KEY: "[]"}}, b""), "no object but a list"),
    "kdpipe junk": (join({"__metadata__": {METADATA_KEY: "{"}}, b""), "JSON under kdpipe"),
    "kdpipe deep": (join({"__metadata__": {METADATA_KEY: "[" * 100_000}}, b""), "nested too deeply"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_none(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    # A dtype that PyTorch lacks shows when the tensors are read.
    for read in (read_state,) if name == "dtype" else (read_metadata, read_state):
        with pytest.raises(TeacherError, match=rf"w\.safetensors: weights can't be read: .*{message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    if not name.startswith("kdpipe"):
        with pytest.raises(ValueError, match=message):
            tensors.parse(data)


def test_a_dimension_that_the_file_has_no_room_for(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(join({"a": entry(shape=(0, 2**40), offsets=(0, 0))}, b""))
    with pytest.raises(TeacherError, match="too small for its tensor 'a'"):
        read_state(path)


def test_parse_gives_what_was_saved():
    kept = {"a": torch.arange(3.0)}
    assert same(tensors.parse(save(kept)), kept)


def test_digests_under_another_key(written):
    header, body = split(written.read_bytes())
    header["__metadata__"] = {"theirs": header["__metadata__"][METADATA_KEY]}
    written.write_bytes(join(header, body))
    with pytest.raises(TeacherError, match="its header has digests, but not under the key kdpipe"):
        read_metadata(written)
