"""Pickled weights: read without running a thing, and each refusal says what is wrong."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdpipe.errors import TeacherError
from kdpipe.models.state import read_state
from tests.trainer import tiny


class Runs:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch /tmp/never",)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{n}.weight": torch.randn(4, 5) for n in range(3)}


def refusal(path: Path) -> str:
    with pytest.raises(TeacherError) as caught:
        read_state(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    for advice in ("weights_only", "arbitrary", "add_safe_globals", "trust the source", "permission", "\n", "\x1b"):
        assert advice not in text
    assert len(text) < 700
    return text


def with_pickle(path: Path, data: bytes) -> None:
    """A torch.save whose pickle is `data`, checksums right."""
    torch.save({"a": torch.arange(1000.0)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, data if name.endswith("data.pkl") else content)


def entries(path: Path, change: Any, **how: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        kept = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in change(kept):
            archive.writestr(name, content)


class TestWhatIsRead:
    @pytest.mark.parametrize("save", [torch.save, legacy])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            OrderedDict,
            lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3, "lr": 0.1},
            lambda s: {"model": {k: torch.nn.Parameter(v) for k, v in s.items()}, "optimizer": {"betas": (0.9, 0.99)}},
            lambda s: {"model": s, "milestones": {3, 5}, "dtype": torch.float16, "size": torch.Size([2, 3])},
        ],
    )
    def test_what_training_scripts_save(self, tmp_path, save, wrap):
        save(wrap(state()), tmp_path / "w.pth")
        found = read_state(tmp_path / "w.pth")
        assert all(torch.equal(found[name], value) for name, value in state().items())

    def test_of_a_whole_training(self, tmp_path):
        model = tiny.model(4)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.zeros(2, 3, 16, 16)).sum().backward()
        optimizer.step()
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
        parts = {"state_dict": model, "optimizer": optimizer, "schedule": schedule}
        torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "w.pth")
        assert read_state(tmp_path / "w.pth").keys() == model.state_dict().keys()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool, torch.uint16, torch.float8_e4m3fn])
    def test_every_dtype(self, tmp_path, dtype):
        torch.save({"a": torch.ones(3).to(dtype)}, tmp_path / "w.pth")
        assert read_state(tmp_path / "w.pth")["a"].dtype == dtype

    def test_a_remark_where_nothing_checks_the_content(self, tmp_path, caplog):
        torch.save(state(), tmp_path / "checked.pth")
        legacy(state(), tmp_path / "old.pth")
        for name in ("checked.pth", "old.pth"):
            read_state(tmp_path / name)
        assert [r.getMessage() for r in caplog.records] == [
            f"{tmp_path / 'old.pth'}: no digest: its content can't be checked"
        ]


class TestForeignCode:
    @pytest.mark.parametrize("save", [torch.save, legacy])
    def test_is_named_and_never_advised_to_be_run(self, tmp_path, save):
        save({"a": torch.zeros(2), "x": Runs()}, tmp_path / "w.pth")
        text = refusal(tmp_path / "w.pth")
        assert "without running code from the file: its pickle refers to posix.system" in text
        assert "save model.state_dict() alone" in text
        assert not Path("/tmp/never").exists()

    def test_a_whole_model(self, tmp_path):
        torch.save(tiny.model(4), tmp_path / "w.pth")
        assert "an object of the class torch.nn.modules.container.Sequential, such as a whole model" in refusal(
            tmp_path / "w.pth"
        )

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")
    def test_a_torchscript_archive(self, tmp_path):
        torch.save(state(), tmp_path / "w.pth")
        entries(tmp_path / "w.pth", lambda kept: [*kept, ("w/constants.pkl", b"x")])
        assert "a TorchScript archive, which is a program" in refusal(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"cbuiltins\nbytearray\n\x8a\x05\x00\xe8\x76\x48\x17\x85R.", "refers to builtins.bytearray"),
            (b"ctorch\nTensor\n\x8a\x05\x00\xe8\x76\x48\x17\x85R.", "refers to torch.Tensor"),
            (b"ctorch.storage\nUntypedStorage\n\x8a\x05\x00\xe8\x76\x48\x17\x85R.", "calls torch.storage.UntypedStor"),
            (b"ccollections\nOrderedDict\nN\x85\x81}b0.", "instruction POP"),
            (b"ctorch\nload\n.", "refers to torch.load"),
            (b"cbuiltins\neval\n.", "refers to builtins.eval"),
            (b"ctorch\nsize\n)R.", "refers to torch.size"),
            (b"))R.", "calls a value"),
            (b"}}b.", "sets attributes of a value"),
        ],
    )
    def test_what_pytorch_would_call(self, tmp_path, data, message):
        with_pickle(tmp_path / "w.pth", b"\x80\x02" + data)
        assert message in refusal(tmp_path / "w.pth")


class TestOtherFiles:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "the file is empty"),
            (b"<!DOCTYPE html>\n<html>", "a web page, not weights"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "git lfs pull"),
            (b"not at all", "not what torch.save writes"),
            (pickle.dumps({"a": 1}), "a pickle, but not one that torch.save wrote"),
            (pickle.dumps({"a": 1}, protocol=2), "a pickle, but not one that torch.save wrote"),
            (bytes(257) + b"ustar" + bytes(300), "a tar, as PyTorch wrote it before 2018"),
            (b"PK\x03\x04" + bytes(100), "damaged or incomplete torch.save"),
        ],
    )
    def test_are_called_by_their_names(self, tmp_path, data, message):
        (tmp_path / "w.pth").write_bytes(data)
        assert message in refusal(tmp_path / "w.pth")

    def test_safetensors_under_another_suffix(self, tmp_path):
        save_file(state(), tmp_path / "w.bin")
        assert "rename it to .safetensors" in refusal(tmp_path / "w.bin")

    def test_any_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("a.txt", "text")
        assert "it has no data.pkl" in refusal(tmp_path / "w.pth")

    def test_a_compressed_one_is_no_bomb(self, tmp_path):
        torch.save(state(), tmp_path / "w.pth")
        entries(tmp_path / "w.pth", lambda kept: kept, compression=zipfile.ZIP_DEFLATED)
        assert "compressed or encrypted entries" in refusal(tmp_path / "w.pth")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_pickles_of_one_name(self, tmp_path):
        torch.save(state(), tmp_path / "w.pth")
        entries(tmp_path / "w.pth", lambda kept: [*kept, (kept[0][0].upper(), b"x")])
        assert "two entries of one name" in refusal(tmp_path / "w.pth")


class TestDamage:
    @pytest.mark.parametrize("save", [torch.save, legacy])
    def test_cut(self, tmp_path, save):
        save(state(), tmp_path / "w.pth")
        data = (tmp_path / "w.pth").read_bytes()
        for end in range(1, len(data), 37):
            for cut in (data[:end], data[: end // 2] + data[end:]):
                (tmp_path / "w.pth").write_bytes(cut)
                assert "weights can't be read" in refusal(tmp_path / "w.pth")

    def test_every_flipped_byte_of_a_zip_is_found_or_changes_nothing(self, tmp_path):
        path = tmp_path / "w.pth"
        torch.save(state(), path)
        data, refused = path.read_bytes(), []
        for at in range(0, len(data), 11):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
            try:
                found = read_state(path)
            except TeacherError as e:
                refused.append(str(e))
                continue
            assert all(torch.equal(found[name], value) for name, value in state().items()), at
        assert len(refused) > 50
        assert not [line for line in refused if "\n" in line or "weights_only" in line]

    def test_a_storage_that_the_file_has_no_room_for(self, tmp_path):
        legacy({"a": torch.arange(1000.0)}, tmp_path / "w.pth")
        data = (tmp_path / "w.pth").read_bytes()
        number = pickle.encode_long(10**11)
        changed = data.replace(b"M\xe8\x03", b"\x8a" + bytes([len(number)]) + number, 1)
        assert changed != data
        (tmp_path / "w.pth").write_bytes(changed)
        assert "weights can't be read" in refusal(tmp_path / "w.pth")

    def test_a_tensor_that_repeats_one_value_a_billion_times(self, tmp_path):
        torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "w.pth")
        assert "the file is too small for its tensor 'a'; found shape (1000000000,)" in refusal(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            # Tuples of tuples: 2^60 values to hash, and a depth at which hashing would end the process.
            (b"}N\x85" + b"q\x01h\x01\x86" * 60 + b"Ns.", "a tuple of more than 10000 values"),
            (b"}N" + b"\x85" * 1_000_000 + b"Ns.", "a tuple of more than 10000 values"),
            (b"N" * 2_100_000 + b".", "more than 2000000 instructions"),
            (b"(tR.", "takes what isn't there"),
            (b"h\x07.", "takes what isn't there"),
            (b"}", "damaged or incomplete pickle"),
            (b"X\xff\xff\xff\xffa", "damaged or incomplete pickle"),
            (b"\x80\x04}.", "protocol 4"),
        ],
    )
    def test_pickles_that_would_hang_or_crash(self, tmp_path, data, message):
        with_pickle(tmp_path / "w.pth", b"\x80\x02" + data)
        assert message in refusal(tmp_path / "w.pth")


def test_pytorchs_own_refusal_is_not_repeated(tmp_path, monkeypatch):
    """Should its list be shorter than ours, once."""

    def load(*_: Any, **__: Any) -> None:
        raise pickle.UnpicklingError("Weights only load failed. Re-running with `weights_only` set to `False` ...\n...")

    torch.save(state(), tmp_path / "w.pth")
    monkeypatch.setattr(torch, "load", load)
    assert "PyTorch can't load it (UnpicklingError)" in refusal(tmp_path / "w.pth")


def test_the_pickle_is_read_as_pytorch_reads_it():
    """The kept list is of names that PyTorch allows too, so that nothing passes here to fail there."""
    from torch._weights_only_unpickler import _get_allowed_globals

    from kdpipe.models.pickles import _CALLED

    assert _get_allowed_globals().keys() >= _CALLED
