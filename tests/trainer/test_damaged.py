"""Damaged and tampered files of a run: one line, and no training from them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe._util import tensors
from kdpipe.errors import CheckpointError, KdpipeError
from kdpipe.trainer import files, train
from kdpipe.trainer.loggers import LiveLog
from tests.mutations import join, mutations, split
from tests.trainer import tiny

KEY = "kdpipe-checkpoint"


class Stopped(Exception):
    """In the middle of an epoch."""


@pytest.fixture(scope="module")
def job(index, validation):
    return tiny.make_job(index, validation, epochs=2, checkpoint_steps=1, model_ema=True, model_ema_decay=0.9)


@pytest.fixture(scope="module")
def kept(job, tmp_path_factory) -> Path:
    """A run that was stopped in its second epoch."""
    out, left = tmp_path_factory.mktemp("kept") / "run", 5

    def on_step(_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        train(job, out, log=lambda _: None, on_step=on_step)
    return out


@pytest.fixture
def begun(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


def refusal(job, out: Path, **how: Any) -> str:
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    with pytest.raises(KdpipeError) as caught:
        train(job, out, log=lambda _: None, **how)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    return str(caught.value)


def resealed(out: Path, change: Any) -> None:
    """Change a checkpoint as one who computes the digests anew."""
    path = out / files.CHECKPOINT
    found, header = tensors.read(path, KEY)
    change(header.content, found)
    tensors.write(path, found, KEY, header.content)


class TestDamage:
    def test_a_flipped_byte_among_the_tensors(self, job, begun):
        path = begun / files.CHECKPOINT
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)
        line = refusal(job, begun)
        assert f"{path}: checkpoint can't be read: damaged: its tensors aren't those that were written" in line
        assert line.endswith("Choose another --out, or delete the folder to start again")

    def test_a_changed_digit_in_the_state(self, job, begun):
        path = begun / files.CHECKPOINT
        header, body = split(path.read_bytes())
        header["__metadata__"][KEY] = header["__metadata__"][KEY].replace('"number":', '"number": ')
        path.write_bytes(join(header, body))
        files.RunFolder(begun).read_checkpoint()  # a space more is the same content
        header["__metadata__"][KEY] = header["__metadata__"][KEY].replace('"images":', '"images":1')
        path.write_bytes(join(header, body))
        assert "damaged: its header isn't the one that was written" in refusal(job, begun)

    def test_mutations_are_refused_or_change_nothing(self, begun):
        folder, path = files.RunFolder(begun), begun / files.CHECKPOINT
        data, (kept, state) = path.read_bytes(), folder.read_checkpoint()
        refused = []
        for what, mutated in mutations(data, 400, seed=5):
            path.write_bytes(mutated)
            try:
                found, said = folder.read_checkpoint()
            except CheckpointError as e:
                refused.append(str(e))
                continue
            assert said == state, what
            assert found.keys() == kept.keys(), what
            assert all(torch.equal(found[name], kept[name]) for name in kept), what
        assert len(refused) > 350
        assert all("\n" not in line and len(line) < 900 for line in refused)

    def test_of_an_older_version_without_a_digest(self, job, begun, caplog):
        path = begun / files.CHECKPOINT
        header, body = split(path.read_bytes())
        state = json.loads(header["__metadata__"][KEY])
        del state["tensors_sha256"], state["header_sha256"]
        path.write_bytes(join({**header, "__metadata__": {KEY: json.dumps(state)}}, body))
        assert train(job, begun, log=lambda _: None) is not None
        assert [r.getMessage() for r in caplog.records] == [f"{path}: no digest: its content can't be checked"]

    def test_a_summary_that_is_none(self, job, begun):
        summary = train(job, begun, log=lambda _: None)
        path = begun / files.SUMMARY
        for text in ("", "{", "[1]", '{"best": NaN}', "[" * 100_000, "9" * 5000):
            path.write_text(text)
            assert "summary.json: summary can't be read: " in (line := refusal(job, begun))
            assert "Delete it, and repeat the command" in line
        path.write_text(json.dumps({**summary, "best": {"epoch": 1}}))
        assert "not the summary of this run's checkpoint" in refusal(job, begun)
        path.unlink()
        again = train(job, begun, log=lambda _: None)
        assert {k: v for k, v in again.items() if "second" not in k} == {
            k: v for k, v in summary.items() if "second" not in k
        }

    @pytest.mark.parametrize("line", ["{", "[]", "{}", '{"epoch": "one"}', "[" * 100_000])
    def test_a_line_of_the_metrics_that_dvclive_is_fed(self, begun, line):
        (begun / files.METRICS).write_text(line + "\n")
        live = LiveLog(begun, False)
        live._on = True  # dvclive itself is not needed for what it is never given
        with pytest.raises(CheckpointError, match="a line of the metrics can't be read"):
            live.update()


def _set(name: str, value: Any) -> Any:
    def change(state: dict[str, Any], _: Any) -> None:
        *path, last = name.split(".")
        for part in path:
            state = state[part]
        state[last] = value

    return change


def _setting(name: str, value: Any) -> Any:
    """Of the optimizer's first group."""

    def change(state: dict[str, Any], _: Any) -> None:
        pairs = state["optimizer"]["groups"]["list"][0]["dict"]
        next(pair for pair in pairs if pair[0] == name)[1] = value

    return change


def _tensor(name: str, value: torch.Tensor | None) -> Any:
    def change(_: Any, found: dict[str, torch.Tensor]) -> None:
        if value is None:
            del found[name]
        else:
            found[name] = value

    return change


class TestResealed:
    """By one who computes the digests anew: types, bounds and shapes are checked all the same."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_set("epoch", "1"), "epoch: Input should be a valid integer"),
            (_set("epoch", -1), "epoch: Input should be greater than or equal to 0"),
            (_set("epoch", 10**400), "epoch: "),
            (_set("epoch", 7), "no point of this run; found epoch 7"),
            (_set("step", 99), "no point of this run; found epoch 1 step 99"),
            (_set("number", 1), "no point of this run; found number 1"),
            (_set("line", {}), "no line of an epoch"),
            (_set("line", []), "line: Input should be a valid dictionary"),
            (_set("best", {"epoch": 1, "validation": None}), "a best epoch without a score"),
            (_set("best", []), "best: "),
            (_set("losses", {"sums": {"loss": "x"}, "steps": 1}), "losses.sums.loss: "),
            (_set("timing.seconds", -1.0), "timing.seconds: "),
            (_set("metrics_bytes", True), "metrics_bytes: "),
            (_set("metrics_bytes", 10**9), "metrics are shorter"),
            (_set("config", []), "config: "),
            (_set("config.caches", [{"views": [[]]}]), "config.caches.0"),
            (_set("config.train", "x" * 100_000), "another train"),
            (_set("format", [[1]]), "another format; found .{5}; allowed: 1"),
            (_set("more", 1), "more: Extra inputs"),
            (_set("optimizer.state", 3), "don't fit its own job"),
            (_set("optimizer.state", {"dtype": "load"}), "don't fit its own job: ValueError: dtype load"),
            (_set("optimizer.state", {"call": "os.system"}), "don't fit its own job: ValueError: call os.system"),
            (_set("optimizer.groups", {"list": []}), "don't fit its own job"),
            (_set("optimizer.scaler", {"scale": "x"}), r"optimizer\.scaler\.scale"),
            (_setting("lr", "fast"), "don't fit its own job: TypeError: lr is fast"),
            (_setting("betas", 0.9), "don't fit its own job"),
            (_tensor("model/0.weight", None), "don't fit its own job: RuntimeError: .*Missing"),
            (_tensor("model/0.weight", torch.zeros(7)), "don't fit its own job: RuntimeError"),
            (_tensor("optimizer/model.0.weight/exp_avg", torch.zeros(7)), "the optimizer can't step|don't fit"),
        ],
    )
    def test_one_line(self, job, begun, change, message):
        resealed(begun, change)
        assert re.search(message, refusal(job, begun))
