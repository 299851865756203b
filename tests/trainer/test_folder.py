"""A run's folder: one run at a time, durable from its first file on."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kdpipe.errors import CheckpointError
from kdpipe.trainer import files, train
from tests.children import run
from tests.trainer import tiny
from tests.trainer.test_refusals import refused


def hold(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def test_two_runs_in_one_folder(index, tmp_path):
    job, told = tiny.make_job(index, epochs=1, checkpoint_steps=1), []

    def on_step(_: object) -> None:
        if not told:
            leftover = tmp_path / "run" / f"{files.LAST}.{'0' * 32}{files.PARTIAL}"
            leftover.write_text("the other run's, half written")
            refused(job, tmp_path / "run", CheckpointError, "run: another run is writing here. Wait for it")
            assert leftover.exists()
            leftover.unlink()
            told.append(True)

    train(job, tmp_path / "run", log=lambda _: None, on_step=on_step)
    assert told
    os.close(hold(tmp_path / "run"))  # it has been let go


def test_a_finished_run_is_read_by_anybody(index, tmp_path):
    job, said = tiny.make_job(index, epochs=1), []
    train(job, tmp_path / "run", log=lambda _: None)
    descriptor = hold(tmp_path / "run")
    train(job, tmp_path / "run", log=said.append)
    os.close(descriptor)
    assert "is finished" in said[-1]


def test_a_folder_that_another_run_made_meanwhile(tmp_path):
    folder = files.RunFolder(tmp_path / "run")
    assert not folder.open()
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match="another run has started here"):
        folder.write_json(files.SUMMARY, {})
    assert not list((tmp_path / "run").iterdir())


def _end_before_its_child(path: Path) -> None:
    folder = files.RunFolder(path)
    folder.open()
    (ready, tell), (wait, stop) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stop)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    folder.close()
    hold(path)
    os.close(stop)
    os.waitpid(child, 0)


def test_children_of_a_run_do_not_hold_its_lock(tmp_path):
    assert run(_end_before_its_child, tmp_path) == 0


def test_a_file_system_without_locks(index, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    train(tiny.make_job(index, epochs=1), tmp_path / "run", log=lambda _: None)


def test_new_folders_are_made_durable(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync", synced.append)
    folder = files.RunFolder(tmp_path / "a" / "b")
    folder.open()
    folder.write_json(files.SUMMARY, {})
    assert synced[:2] == [tmp_path / "a", tmp_path]
    synced.clear()
    folder.write_json(files.SUMMARY, {})
    assert tmp_path not in synced
    folder.close()
