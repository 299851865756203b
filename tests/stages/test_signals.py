"""Ctrl-C, SIGTERM and SIGUSR1: an orderly end, a command that goes on, and the result of an undisturbed run."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from kdpipe_stages.signals import Stopped, stop_requests, stopping
from tests.chaos import child
from tests.stages.running import kdpipe
from tests.tiny import tree

SETTINGS = [
    *("--set", "teacher.mean=[0.5,0.5,0.5]", "--set", "teacher.std=[0.25,0.25,0.25]", "--set", "teacher.threads=1"),
    *("--set", "views.mixup=0.8", "--set", "views.crop_pct=1", "--set", "views.auto_augment=rand-m9-inc1"),
]


def test_a_signal_raises_where_the_work_is_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop, stopping():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_is_asked_finds_its_own_moment_but_a_second_signal_does_not_wait():
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop()
        assert stop.stopped().number == signal.SIGUSR1
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(words: list[str], folder: Path, ready: str, number: int) -> child.Ended:
    """Run a command, signal it once when a file has appeared, and wait for its end."""
    with child.running(words, folder / "notes") as one:
        began = time.monotonic()
        while not list(folder.glob(ready)):
            assert one.alive(), one.wait()
            assert time.monotonic() - began < 120
            time.sleep(0.01)
        os.kill(one.pid, number)
        return one.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_cache_teacher_stops_and_goes_on(world, tmp_path, number):
    words = ["cache-teacher", "--index", world.index_path, "--teacher", "tests.tiny:network", *SETTINGS]
    words += ["--num-classes", "7", "--input-size", "16", "--batch-size", "8", "--views", "0:60"]
    words += ["--set", "caching.render_threads=1"]
    done = interrupted([*words, "--out", str(tmp_path / "c")], tmp_path, "c/commits/*/shard-*.json", number)
    assert done.code == 128 + number, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(
        f"stopped by {signal.Signals(number).name}. Finished work is kept; resume with: kdpipe cache"
    )
    assert "Traceback" not in done.err
    again = shlex.split(last.partition("resume with: kdpipe ")[2])
    assert kdpipe(*again).code == 0
    assert kdpipe(*words, "--out", tmp_path / "alone").code == 0
    assert tree(tmp_path / "c") == tree(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_train_student_stops_after_a_step_and_goes_on(world, tmp_path, number):
    words = [
        "train-student",
        "--index",
        world.index_path,
        "--val",
        world.index_path,
        "--student",
        "tests.tiny:network",
    ]
    words += ["--num-classes", "7", "--input-size", "16", "--loss", "none", "--epochs", "12", "--batch-size", "2"]
    words += ["--set", "train.threads=1", "--set", "train.device=cpu", "--set", "train.checkpoint_epochs=100"]
    done = interrupted([*words, "--out", str(tmp_path / "run")], tmp_path, "run/metrics.jsonl", number)
    assert done.code == 128 + number, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}")
    assert not (tmp_path / "run/summary.json").exists()
    again = kdpipe(*shlex.split(last.partition("resume with: kdpipe ")[2]))
    assert again.code == 0
    assert "resuming at epoch" in again.err
    assert kdpipe(*words, "--out", tmp_path / "alone").code == 0
    ours, theirs = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("run", "alone"))
    assert ours == theirs
