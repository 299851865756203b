"""--overwrite, and dvclive: what DVC's stages ask of a run."""

import csv
import json
import sys

import pytest

from kdpipe.errors import CheckpointError, TrainingError
from kdpipe.trainer import train
from tests.trainer import tiny

LOSSES = {"name": "kd", "alpha": 0.3}


class Stopped(Exception):
    """Somebody pulled the plug."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replace")
    index, validation = tiny.make_index(folder), tiny.make_index(folder, "val", seed=1)
    return index, validation, tiny.make_cache(folder, index)


def job(data, **changes):
    index, validation, cache = data
    return tiny.make_job(index, validation, cache, **changes)


def quiet(text):
    pass


def stop_at(number):
    def on_step(step):
        if (step.epoch - 1) * step.steps + step.step == number:
            raise Stopped

    return on_step


def test_another_job_is_replaced_and_owes_nothing_to_the_former(tmp_path, data):
    train(job(data), tmp_path / "a", log=quiet)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"loss\.kd\.alpha"):
        train(job(data, loss=LOSSES), tmp_path / "a", log=quiet)
    said = []
    train(job(data, loss=LOSSES), tmp_path / "a", log=said.append, overwrite=True)
    train(job(data, loss=LOSSES), tmp_path / "b", log=quiet)
    assert any("is replaced" in line for line in said)
    assert tiny.lines(tmp_path / "a") == tiny.lines(tmp_path / "b")
    assert (tmp_path / "a" / "best.safetensors").read_bytes() == (tmp_path / "b" / "best.safetensors").read_bytes()
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_the_same_job_goes_on(tmp_path, data):
    with pytest.raises(Stopped):
        train(job(data), tmp_path / "a", log=quiet, on_step=stop_at(5))
    said = []
    train(job(data), tmp_path / "a", log=said.append, overwrite=True)
    train(job(data), tmp_path / "b", log=quiet)
    assert any("resuming at epoch 2" in line for line in said)
    assert tiny.lines(tmp_path / "a") == tiny.lines(tmp_path / "b")


def test_dvclive_has_each_epoch_once_after_an_interruption(tmp_path, data):
    pytest.importorskip("dvclive", reason="dvclive is not installed: pip install 'kdpipe[dvc]'")
    with pytest.raises(Stopped):
        train(job(data), tmp_path / "a", log=quiet, on_step=stop_at(8), dvclive=True)
    train(job(data), tmp_path / "a", log=quiet, dvclive=True)
    lines = tiny.lines(tmp_path / "a")
    folder = tmp_path / "a" / "dvclive"
    for part, name in [("train", "loss"), ("validation", "top1")]:
        with (folder / "plots" / "metrics" / part / f"{name}.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [(int(row["step"]), float(row[name])) for row in rows] == [
            (line["epoch"], pytest.approx(line[part][name])) for line in lines
        ]
    assert json.loads((folder / "metrics.json").read_text())["step"] == 3


def test_dvclive_that_is_not_installed_is_said_before_training(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "dvclive", None)
    with pytest.raises(TrainingError, match="dvclive is not installed"):
        train(job(data), tmp_path / "a", log=quiet, dvclive=True)
    assert not (tmp_path / "a").exists()
