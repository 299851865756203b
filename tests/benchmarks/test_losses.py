"""The table of losses: all of them in it, paired with labels alone, and nothing in it that wasn't measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.comparison.losses import ALONE, rows
from benchmarks.comparison.run import STUDENT, STUDENT_KWARGS, Budget, job
from benchmarks.comparison.runs import Run, run_one
from benchmarks.comparison.setup import Setup
from benchmarks.comparison.table import cells, draw
from benchmarks.report import read, write
from kdpipe.losses import LOSSES
from kdpipe.models import ModelConfig
from kdpipe.shards import build_index
from kdpipe.shards.prepare import prepare_digits
from kdpipe.teacher import TeacherConfig
from kdpipe.views import ViewsConfig
from tests.benchmarks.running import benchmark, refused

DOCS = Path(__file__).parent.parent.parent / "docs"
SIZE = 16
FEED: dict[str, Any] = {"num_classes": 10, "input_size": SIZE, "mean": (0.5,) * 3, "std": (0.5,) * 3}
TEACHER = {"model": "slak_nano", "model_kwargs": {"patch_size": 1}, **FEED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of which a part is labelled, and a teacher that knows nothing."""
    folder = tmp_path_factory.mktemp("comparison")
    prepare_digits(folder / "digits", labelled=0.3, size=SIZE)
    for name in ("train", "val"):
        build_index(str(folder / "digits" / name), folder / f"{name}.index", num_classes=10)
    torch.manual_seed(0)
    model = timm.create_model("slak_nano", num_classes=10)
    save_file(model.state_dict(), folder / "teacher.safetensors")
    teacher = {**TEACHER, "mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 16, "form": "eager"}
    (folder / "params.yaml").write_text(yaml.safe_dump({"views": {"crop_pct": 1.0}, "teacher": teacher}))
    return folder


def made(folder: Path) -> Setup:
    train, val = (
        build_index(str(folder / "digits" / n), folder / f"{n}.index", num_classes=10) for n in ("train", "val")
    )
    teacher = TeacherConfig(**TEACHER, weights=str(folder / "teacher.safetensors"))
    return Setup(train.limit(64), val.limit(20), ViewsConfig(crop_pct=1.0), teacher)


@pytest.fixture(scope="module")
def words(folder: Path) -> list[object]:
    """The command, which has been run once."""
    document = folder / "docs" / "losses.md"
    document.parent.mkdir()
    words = [
        *("losses", "--index", folder / "train.index", "--limit", 64, "--val", folder / "val.index"),
        *("--val-limit", 20, "--weights", folder / "teacher.safetensors", "--config", folder / "params.yaml"),
        *("--epochs", 1, "--batch-size", 32, "--seeds", 1, "--jobs", 1, "--only", "kd", "--only", "fitnets"),
        *("--out", folder / "runs", "--document", document, "--name", "A few digits", "--json"),
    ]
    assert benchmark(*words).code == 0
    return words


def test_the_command(folder: Path, words: list[object]) -> None:
    document = folder / "docs" / "losses.md"
    first = json.loads((folder / "docs" / "losses.json").read_text())["A few digits"]
    result = benchmark(*words)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [row["label"] for row in report["rows"]] == [ALONE, "kd", "kd, CIFAR", "ce+fitnets"]
    assert [row["bytes_per_view"] for row in report["rows"]] == [0, 20, 20, 960]
    alone = report["rows"][0]["top1"][0]
    for row in report["rows"]:
        assert row["gain"] == [pytest.approx(row["top1"][0] - alone)]
        assert row["seconds"][0] > 0
        assert row["parts"]["loss"] > 0
    assert report["rows"][2]["hyperparameters"] == "temperature 4, alpha 0.9"
    assert report["data"]["samples"] == 64
    assert 0 < report["data"]["labelled"] < 64
    assert (report["teacher"]["map"], report["budget"]["steps"]) == ([2, 2, 120], 2)
    assert "--only kd --only fitnets" in report["command"]
    text = document.read_text()
    assert "\n## A few digits\n\n<!-- figures: A few digits -->\n\n    python -m benchmarks losses --index " in text
    assert f"| kd, CIFAR | temperature 4, alpha 0.9 | {report['rows'][2]['top1'][0]:.2f} |" in text
    # What is finished is not done again.
    assert [row["seconds"] for row in first["rows"]] == [row["seconds"] for row in report["rows"]]


def test_a_loss_that_cannot_is_refused_in_its_row(folder: Path, words: list[object], tmp_path: Path) -> None:
    setup, budget = made(folder), Budget(epochs=1, batch_size=32, lr=1e-3, seeds=1, jobs=1)
    student = ModelConfig(model=STUDENT, model_kwargs=STUDENT_KWARGS, **FEED)
    row = next(row for row in rows(1) if row.label == "norm")
    url = str(folder / "runs" / "cache.zarr")
    convnext = student.model_copy(update={"model": "convnext_atto", "model_kwargs": {"depths": [1, 1, 1, 1]}})
    found = run_one(Run("norm", 0, job(setup, url, convnext, row, budget, 0), tmp_path / "norm"))
    assert "can't be merged into this student" in found.refused
    shown = {**made_up("norm", 0.0), "refused": found.refused}
    assert cells(shown)[2].startswith("refused: ")


def test_labels_alone_takes_as_many_steps(folder: Path) -> None:
    setup, budget = made(folder), Budget(epochs=20, batch_size=8, lr=1e-3, seeds=1, jobs=1)
    alone, kd = (row for row in rows(20, ["kd"]) if row.label in (ALONE, "kd"))
    few = job(setup, "c", ModelConfig(), alone, budget, 1).train
    many = job(setup, "c", ModelConfig(), kd, budget, 1).train
    per_epoch = -(-setup.labelled // 8)
    assert abs(few.epochs * per_epoch - 20 * 64 / 8) <= per_epoch
    assert many.epochs == 20
    assert (few.lr, few.seed) == (many.lr, many.seed)
    assert few.warmup / few.epochs == pytest.approx(many.warmup / many.epochs)


def test_every_loss_has_a_row() -> None:
    found = rows(240)
    assert found[0].label == ALONE
    assert {name for row in found for name in row.loss.name.split("+")} == set(LOSSES)
    assert next(row for row in found if row.label == "dkd, CIFAR").loss.dkd.warmup == 20
    assert next(row for row in rows(12) if row.label == "dkd, CIFAR").loss.dkd.warmup == 1


def made_up(name: str, *gains: float) -> dict[str, Any]:
    return {
        "label": name,
        "hyperparameters": "",
        "loss": {"name": name},
        "bytes_per_view": 0,
        "refused": "",
        "top1": [50 + gain for gain in gains],
        "gain": list(gains),
        "seconds": [3.0, 1.0],
        "parts": {"loss": 2.0, "ce": 0.5},
    }


def test_what_three_seeds_can_tell() -> None:
    assert cells(made_up("none", 0.0, 0.0))[3:6] == ["", "", ""]
    assert cells(made_up("kd", 1.0, 3.0))[2:7] == [
        "52.00 (51.00 to 53.00)",
        "+2.00 (+1.00 to +3.00)",
        "2 of 2",
        "",
        "1",
    ]
    assert cells(made_up("dkd", -1.0, 5.0, 0.0))[4] == "1 of 3"
    assert cells(made_up("ce+rkd", 1.0))[5] == "75%"


def test_options_that_do_not_go_together() -> None:
    assert "--val" in refused("losses", "--index", "x")
    assert "Pass --index too" in refused("losses", "--weights", "x")


def test_the_document_has_the_tables_of_its_reports(tmp_path: Path) -> None:
    for suffix in ("md", "json"):
        shutil.copy(DOCS / f"losses.{suffix}", tmp_path)
    write(str(tmp_path / "losses.md"), read(str(DOCS / "losses.md")), draw)
    for suffix in ("md", "json"):
        assert (tmp_path / f"losses.{suffix}").read_text() == (DOCS / f"losses.{suffix}").read_text()
