"""Stopped anywhere, gone on with: byte for byte the weights and the metrics of a run that nobody stopped."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdpipe._util import tensors
from kdpipe.trainer import TrainConfig, TrainingJob, files, loop, train
from tests.trainer import tiny

# A run of 3 epochs of 3 steps, with checkpoints inside epochs and all kinds of state.
SETTINGS = {
    "checkpoint_steps": 2,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "clip_grad": 1.0,
    "opt": "adamw",
    "threads": 1,
}
CLOCK = ("timing", "metrics_bytes")


class Stopped(Exception):
    """Somebody pulled the plug."""


@pytest.fixture(scope="module")
def job(index, validation, cache) -> TrainingJob:
    return tiny.make_job(index, validation, cache, **SETTINGS)


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(job, out, log=lambda _: None)
    return out


def assert_same(out: Path, whole: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    # As text: the order of a line's losses is the same too.
    assert json.dumps(tiny.lines(out)) == json.dumps(tiny.lines(whole))
    ours, theirs = (files.RunFolder(p).read_checkpoint() for p in (out, whole))
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    # Seconds differ, and with their digits the length of the metrics.
    assert {**ours[1], **dict.fromkeys(CLOCK)} == {**theirs[1], **dict.fromkeys(CLOCK)}
    assert not list(out.glob("*" + files.PARTIAL))
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.parametrize("stops", [[1], [2], [3], [4, 4], [9], [1, 1, 1]])
def test_stopped_after_a_step(job, whole, tmp_path, stops):
    for stop in stops:
        left = stop

        def on_step(_) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped

        with pytest.raises(Stopped):
            train(job, tmp_path / "run", log=lambda _: None, on_step=on_step)
    said: list[str] = []
    train(job, tmp_path / "run", log=said.append)
    # The first checkpoint with anything trained in it is that of the second step, written after it was told.
    assert said[1].startswith("resuming at epoch ") == (max(stops) > 2)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("stop", [3, 5, 8, 9])
def test_stopped_between_rare_checkpoints(index, validation, cache, whole, tmp_path, stop):
    """Epochs whose lines and best weights were written, but no checkpoint, come again."""
    rare = tiny.make_job(index, validation, cache, **{**SETTINGS, "checkpoint_steps": None, "checkpoint_epochs": 2})
    left = stop

    def on_step(_) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        train(rare, tmp_path / "run", log=lambda _: None, on_step=on_step)
    train(rare, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        *((name, nth) for name in (files.METRICS, files.LAST, files.BEST, files.CHECKPOINT) for nth in (1, 2)),
        (files.SUMMARY, 1),
    ],
)
def test_stopped_while_writing(job, whole, tmp_path, monkeypatch, name, nth):
    """Raised when the file is complete on disk and about to be renamed, or has just been appended to."""
    seen = 0
    real = files.fsync

    def fsync(path: Path) -> None:
        nonlocal seen
        if path.name.startswith(name):
            seen += 1
            if seen == nth:
                raise Stopped
        real(path)

    append = files.RunFolder.append_metrics

    def append_metrics(self, line):
        length = append(self, line)
        fsync(self.path / files.METRICS)
        return length

    monkeypatch.setattr(files, "fsync", fsync)
    monkeypatch.setattr(files.RunFolder, "append_metrics", append_metrics)
    with pytest.raises(Stopped):
        train(job, tmp_path / "run", log=lambda _: None)
    monkeypatch.undo()
    train(job, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", whole)


def test_views_cached_meanwhile_change_nothing(job, whole, index, tmp_path):
    """A run goes on with the views that it began with; only a new one takes up the others."""
    growing = replace(job, caches=(tiny.make_cache(tmp_path, index),))
    left = 4

    def on_step(_) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    with pytest.raises(Stopped):
        train(growing, tmp_path / "run", log=lambda _: None, on_step=on_step)
    tiny.make_cache(tmp_path, index, views=(2, 3, "center"))
    train(growing, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", whole)
    assert train(growing, tmp_path / "run", log=lambda _: None)["config"]["caches"][0]["views"] == [0, 1]
    summary = train(replace(growing, train=TrainConfig(**tiny.TRAIN)), tmp_path / "new", log=lambda _: None)
    assert summary["config"]["caches"][0]["views"] == [0, 1, 2, 3]


def test_another_encoding_cached_meanwhile_changes_nothing(job, index, tmp_path):
    growing = replace(job, caches=(tiny.make_cache(tmp_path, index),))

    def on_step(progress) -> None:
        if progress.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(growing, tmp_path / "run", log=lambda _: None, on_step=on_step)
    tiny.make_cache(tmp_path, index, views=(0, 1, 2), dtype="float16")
    summary = train(growing, tmp_path / "run", log=lambda _: None)
    assert summary is not None
    [cache] = summary["config"]["caches"]
    assert (cache["views"], cache["encodings"][0]["dtype"]) == ([0, 1], "float32")


def test_a_finished_run_is_left_alone(job, whole):
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in whole.iterdir()}
    said: list[str] = []
    summary = train(job, whole, log=said.append)
    assert said[-1] == f"{whole} is finished: 3 epochs, nothing to do"
    assert summary["best"]
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in whole.iterdir()} == before


@pytest.mark.parametrize("opt", ["sgd", "lamb", "lookahead_radam", "muon", "adafactorbv", "nadamw"])
def test_every_kind_of_optimizer_state(index, tmp_path, opt):
    job = tiny.make_job(index, opt=opt, epochs=2, checkpoint_steps=1, lr=0.001)
    train(job, tmp_path / "whole", log=lambda _: None)

    def on_step(progress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise Stopped

    with pytest.raises(Stopped):
        train(job, tmp_path / "run", log=lambda _: None, on_step=on_step)
    train(job, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_timm_models_in_channels_last(index, tmp_path, model):
    student = {"model": model, "input_size": 32}
    job = tiny.make_job(index, student=student, epochs=1, checkpoint_steps=1, drop_path=0.2)
    train(job, tmp_path / "whole", log=lambda _: None)

    def on_step(progress) -> None:
        if progress.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(job, tmp_path / "run", log=lambda _: None, on_step=on_step)
    train(job, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", tmp_path / "whole")


# --- SIGKILL, in a child ---


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_epoch(at: int) -> None:
    real, left = loop.TrainingLoop._save, [at]

    def on_step(self) -> None:
        left[0] -= 1
        if left[0] == 0:
            _die()

    step = loop.LossLog.add
    loop.LossLog.add = lambda self, *a: (step(self, *a), on_step(self))[0]
    assert real


def kill_between_epochs(at: int) -> None:
    """After the epoch's evaluation, before anything of it is written."""
    real, left = loop.TrainingLoop._evaluate, [at]

    def evaluate(self):
        scores = real(self)
        left[0] -= 1
        if left[0] == 0:
            _die()
        return scores

    loop.TrainingLoop._evaluate = evaluate


def kill_half_way_through_writing(at: int) -> None:
    """The at-th checkpoint is half on disk."""
    real, left = tensors.save_file, [at]

    def save_file(content, path, metadata):
        real(content, path, metadata)
        if Path(path).name.startswith(files.CHECKPOINT):
            left[0] -= 1
            if left[0] == 0:
                os.truncate(path, os.path.getsize(path) // 2)
                _die()

    tensors.save_file = save_file


def kill_before_rename(at: int) -> None:
    """The at-th checkpoint is on disk under its temporary name."""
    _kill_around_rename(at, before=True)


def kill_after_rename(at: int) -> None:
    """The at-th checkpoint has its name, the folder is not synced."""
    _kill_around_rename(at, before=False)


def _kill_around_rename(at: int, before: bool) -> None:
    real, left = Path.replace, [at]

    def replace(self, target):
        hit = Path(target).name == files.CHECKPOINT
        left[0] -= hit
        if hit and left[0] == 0 and before:
            _die()
        real(self, target)
        if hit and left[0] == 0:
            _die()

    Path.replace = replace


def _child(job: TrainingJob, out: Path, kill: Callable[[int], None], at: int) -> None:
    kill(at)
    train(job, out, log=lambda _: None)


@pytest.mark.parametrize(
    ("kill", "at"),
    [
        (kill_in_epoch, 1),
        (kill_in_epoch, 5),
        (kill_between_epochs, 1),
        (kill_between_epochs, 2),
        (kill_half_way_through_writing, 1),
        (kill_half_way_through_writing, 3),
        (kill_before_rename, 4),
        (kill_after_rename, 3),
    ],
)
def test_sigkill(job, whole, tmp_path, kill, at):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.test_resume"])
    child = context.Process(target=_child, args=(job, tmp_path / "run", kill, at))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    train(job, tmp_path / "run", log=lambda _: None)
    assert_same(tmp_path / "run", whole)
