"""`kdpipe report` puts each run beside its baseline, and refuses what is no run."""

import json
from pathlib import Path

import pytest

from tests.stages.running import kdpipe, refused


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def run(folder: Path, name: str, model: str, loss: str, top1: float, **scores: float) -> None:
    student = {"model": model, "num_classes": 10}
    summary = {"student": model, "loss": {"name": loss}, "steps": 7, "config": {"student": student}}
    put(folder / "models" / name / "summary.json", summary)
    put(folder / "models" / name / "best.safetensors", "x" * 5)
    put(folder / "evaluations" / f"{name}.json", {"top1": top1, "nll": 0.5, **scores})


@pytest.fixture
def place(tmp_path) -> Path:
    run(tmp_path, "a-kd", "a", "kd", 0.9, agreement_top1=0.95, kl=0.1)
    run(tmp_path, "a-none", "a", "none", 0.8, agreement_top1=0.85, kl=0.3)
    run(tmp_path, "b-kd", "b", "kd", 0.7)
    quality = {"teacher_top1": 0.99, "encoding_loss": 1e-8}
    put(
        tmp_path / "cache.json",
        {"teacher": "t", "samples": 5, "views": [0, 1], "bytes": 230, "quality": quality},
    )
    return tmp_path


def report(place: Path, *more: object):
    where = ("--evaluations", place / "evaluations", "--out", place / "out" / "report.md")
    return (place / "models", *where, *more)


def test_a_student_is_compared_with_the_baseline_of_its_model(place):
    found = kdpipe(
        "report", *report(place, "--cache", place / "cache.json", "--teacher", place / "cache.json", "--json")
    )
    document = json.loads(found.out)
    assert document["teacher"] == {"model": "t", "top1": 0.99}
    assert document["cache"] == {"samples": 5, "views": 2, "bytes": 230, "bytes_per_view": 23.0, "encoding_loss": 1e-8}
    student = document["students"]["a-kd"]
    assert student["gain_points"] == pytest.approx(10)
    assert student["baseline"] == "a-none"
    assert (student["agreement_top1"], student["steps"], student["weights_bytes"]) == (0.95, 7, 5)
    assert document["students"]["a-none"]["gain_points"] is None
    assert document["students"]["b-kd"]["baseline"] is None
    text = (place / "out" / "report.md").read_text()
    assert "| a-kd | a | kd | 7 | 90.00 | 95.00 | +10.00 | 5 |" in text.splitlines()
    assert "| teacher | t | | | 99.00 | | | |" in text.splitlines()
    assert "5 samples x 2 views, 230 bytes, 23.0 a view" in text


def test_without_records_only_the_runs(place):
    found = kdpipe("report", *report(place))
    assert found.code == 0
    assert "teacher" not in found.out
    assert found.out == (place / "out" / "report.md").read_text()


def test_mistakes(place):
    put(place / "evaluations" / "c-kd.json", {"top1": 1.0, "nll": 0.1})
    assert "c-kd/summary.json: can't be read" in refused("report", *report(place))
    put(place / "models" / "c-kd" / "summary.json", {"student": "c"})
    assert "c-kd/summary.json: not a finished run: loss: field required" in refused("report", *report(place))
    (place / "evaluations" / "c-kd.json").unlink()
    assert "no record of a cache" in refused("report", *report(place, "--cache", place / "evaluations" / "a-kd.json"))
    assert not (place / "out").exists()
    nowhere = ("--evaluations", place / "nowhere", "--out", place / "r.md")
    assert "no evaluations there" in refused("report", place / "models", *nowhere)
