"""Mistakes a user makes: one clear line, and nothing half-written."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdpipe.errors import (
    CacheError,
    CheckpointError,
    IdentityError,
    KdpipeError,
    ShardError,
    TargetsError,
    TeacherError,
    TrainingError,
)
from kdpipe.shards import build_index
from kdpipe.trainer import TrainConfig, files, train
from tests.shards.making import write_shards
from tests.trainer import tiny


def refused(job, out: Path, kind: type[KdpipeError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        train(job, out, log=lambda _: None)
    assert "\n" not in str(caught.value)


@pytest.fixture
def begun(index, tmp_path) -> Path:
    train(tiny.make_job(index, epochs=1), tmp_path / "run", log=lambda _: None)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epochs": 2, "warmup_epochs": 0.5}, r"train\.epochs"),
        ({"epochs": 1, "lr": 0.5}, r"train\.lr"),
        ({"epochs": 1, "batch_size": 8}, r"train\.batch_size"),
        ({"epochs": 1, "seed": 8}, r"train\.seed"),
        ({"epochs": 1, "opt": "sgd"}, r"train\.opt"),
        ({"epochs": 1, "loss": {"name": "none", "label_smoothing": 0.1}}, r"loss\.none\.label_smoothing"),
        ({"epochs": 1, "student": {"model_kwargs": {"width": 4}}}, r"student\.model_kwargs\.width"),
        ({"epochs": 1, "student": {"input_size": 12}}, r"student\.input_size"),
        ({"epochs": 1, "loader": {"window": 1}}, r"loader\.window"),
    ],
)
def test_another_jobs_checkpoint(index, begun, change, field):
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    refused(tiny.make_job(index, **change), begun, CheckpointError, rf"made with another {field}.*another --out")
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before


def test_other_data(index, validation, begun, cache):
    refused(tiny.make_job(validation, epochs=1), begun, CheckpointError, "another data")
    refused(tiny.make_job(index.limit(30), epochs=1), begun, CheckpointError, "another data")
    refused(tiny.make_job(index, validation, epochs=1), begun, CheckpointError, "another validation")
    refused(tiny.make_job(index, cache=cache, epochs=1), begun, CheckpointError, "another cache")


def test_where_it_runs_may_change(index, begun):
    said: list[str] = []
    job = tiny.make_job(index, epochs=1, threads=1, checkpoint_steps=1, loader={"workers": 1})
    train(job, begun, log=said.append)
    assert "finished" in said[-1]


def test_out_holds_something_else(index, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("words")
    (out / "download.partial").write_text("half")
    refused(tiny.make_job(index), out, CheckpointError, r"thesis: holds no checkpoint.*chapter1\.tex.*another --out")
    assert sorted(p.name for p in out.iterdir()) == ["chapter1.tex", "download.partial"]


def test_damaged_checkpoint(index, begun):
    path = begun / files.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    refused(tiny.make_job(index, epochs=1), begun, CheckpointError, "checkpoint can't be read")
    path.write_bytes(b"junk")
    refused(tiny.make_job(index, epochs=1), begun, CheckpointError, "checkpoint can't be read")


def test_foreign_safetensors_under_our_name(index, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    save_file({"a": torch.zeros(2)}, out / files.CHECKPOINT)
    refused(tiny.make_job(index), out, CheckpointError, "checkpoint can't be read")


def test_metrics_cut_by_another_hand(index, begun):
    (begun / files.METRICS).write_text("")
    refused(tiny.make_job(index, epochs=1), begun, CheckpointError, "metrics are shorter")


def test_no_permission(index, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    refused(tiny.make_job(index), blocked / "run", CheckpointError, "can't be written: Not a directory")


@pytest.mark.parametrize("name", [files.CHECKPOINT, files.LAST, files.METRICS, files.SUMMARY])
def test_disk_full(index, tmp_path, monkeypatch, name):
    real = os.fsync

    def fsync(handle: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    job = tiny.make_job(index, epochs=1)
    monkeypatch.setattr(os, "fsync", fsync)
    refused(job, tmp_path / "run", CheckpointError, f"{name}: can't be written: No space left on device.*Free space")
    assert not list((tmp_path / "run").glob("*" + files.PARTIAL))
    monkeypatch.undo()
    train(job, tmp_path / "run", log=lambda _: None)
    assert len(tiny.lines(tmp_path / "run")) == 1


def test_loss_that_is_not_finite(index, tmp_path):
    """Told with epoch and step, and the checkpoint is from before."""
    job = tiny.make_job(index, lr=1e30, epochs=2, warmup_epochs=0, checkpoint_steps=1, opt="sgd")
    message = r"epoch \d step \d: the loss is not finite; found loss (nan|inf).*Lower --lr"
    refused(job, tmp_path / "run", TrainingError, message)
    _, state = files.RunFolder(tmp_path / "run").read_checkpoint()
    assert state["number"] < 6
    with pytest.raises(TrainingError):
        train(job, tmp_path / "run", log=lambda _: None)


def test_no_labels(tmp_path):
    bare = tiny.make_index(tmp_path, "bare", unlabelled=1.0)
    refused(tiny.make_job(bare), tmp_path / "run", TrainingError, "no labelled sample")
    assert not (tmp_path / "run" / files.CHECKPOINT).exists()


def test_kd_without_a_cache(index, tmp_path):
    job = tiny.make_job(index, loss={"name": "kd"})
    refused(job, tmp_path / "run", TrainingError, "loss kd needs a teacher's targets.*Pass --cache")


def test_topk_cache_for_a_temperature(index, data, tmp_path):
    url = tiny.make_cache(tmp_path, index, kind="topk", k=2)
    job = tiny.make_job(index, cache=url, loss={"name": "kd", "temperature": 4.0})
    refused(job, tmp_path / "run", TargetsError, "needs every class")


def test_cache_of_other_shards_classes_or_policy(index, validation, cache, tmp_path):
    refused(tiny.make_job(validation, cache=cache), tmp_path / "a", IdentityError, "the cache was made without")
    job = tiny.make_job(index, cache=cache, student={"num_classes": 9})
    refused(job, tmp_path / "b", IdentityError, "another num_classes")
    job = tiny.make_job(index, cache=cache)
    other = tiny.ViewsConfig(**{**tiny.VIEWS.model_dump(), "seed": 6})
    refused(type(job)(**{**vars(job), "views": other}), tmp_path / "c", IdentityError, r"another views\.seed")
    refused(tiny.make_job(index, cache=str(tmp_path / "none.zarr")), tmp_path / "d", CacheError, "no cache here")


def test_strict_schedule_is_refused_at_the_start(index, cache, tmp_path):
    job = tiny.make_job(index, cache=cache, loader={"view_schedule": "strict"})
    refused(job, tmp_path / "run", TargetsError, "more epochs than cached views")
    assert not (tmp_path / "run" / files.CHECKPOINT).exists()


def test_label_out_of_range(index, tmp_path):
    job = tiny.make_job(index, student={"num_classes": 2})
    refused(job, tmp_path / "run", ShardError, r"label out of range.*allowed: 0 to 1")


def test_corrupt_image(tmp_path):
    """Its bytes are as indexed, but they are no image: shard and key are named."""
    paths = write_shards(tmp_path / "s", 1, 6, size=20, classes=tiny.CLASSES, kind="png")
    data = bytearray(paths[0].read_bytes())
    at = data.index(b"IDAT") + 8
    data[at : at + 40] = bytes(40)
    paths[0].write_bytes(bytes(data))
    index = build_index(str(paths[0]), tmp_path / "s.index", check="header")
    refused(tiny.make_job(index), tmp_path / "run", ShardError, r"shard-0000.*s000000.*can't be decoded")


def test_unknown_student(index, tmp_path):
    refused(tiny.make_job(index, student={"model": "resnet19"}), tmp_path / "a", TeacherError, "unknown model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"opt": "adamq"}, "unknown optimizer adamq"),
        ({"sched": "plateau"}, "sched"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs must be less than epochs"),
        ({"lr": -1}, "greater than 0"),
        ({"epoch": 1}, "Extra inputs"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_optimizer_arguments(index, tmp_path):
    job = tiny.make_job(index, opt_kwargs={"betas": [0.9, 2.0]})
    refused(job, tmp_path / "a", TrainingError, "adamw, cosine: optimizer or schedule can't be made")
    job = tiny.make_job(index, sched="wsd", decay_epochs=50)
    refused(job, tmp_path / "b", TrainingError, "optimizer or schedule can't be made")


def test_config_is_json(index, begun):
    summary = json.loads((begun / files.SUMMARY).read_text())
    assert np.isfinite(summary["final"]["train"]["loss"])
    assert summary["config"]["data"] == index.fingerprint
