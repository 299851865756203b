"""The fidelity bench: other formats, buckets and parity, and the tables drawn from its reports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fidelity import command, synthetic_teacher
from benchmarks.fidelity.run import TAILS, fidelity, renormalised
from benchmarks.fidelity.tables import draw
from benchmarks.report import read, write
from kdpipe.fidelity.encodings import encoding_cases
from kdpipe.fidelity.loss_cases import loss_cases
from kdpipe.fidelity.setup import Setup, make_setup
from kdpipe.targets import Targets
from kdpipe.teacher import Teacher, TeacherConfig
from tests.benchmarks.running import benchmark, refused
from tests.fidelity.tiny import CLASSES, KS, QUICK, VIEWS, settings
from tests.threads import one_thread

DOCS = Path(__file__).parents[2] / "docs"
PARITY = {"kd", "rkd", "cap-dfm", "scalekd"}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def report(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with one_thread():
        cases = loss_cases({*TAILS, *PARITY, "kd, T 4"})
        found = fidelity(setup, cases, tmp_path_factory.mktemp("fidelity"), QUICK, 2)
    return json.loads(json.dumps(found))


def error(report: dict[str, Any], loss: str, name: str) -> float:
    return report["errors"][loss][name]["student"]["median"]


def test_as_kd_a_bucket_is_no_better_than_an_even_tail(report):
    for k in KS:
        assert error(report, "kd", f"top{k}-float16") < 2 * report["bucket"][f"top{k}-float16"]["median"]


def test_the_reference_makes_the_top_k_sum_to_one_and_has_larger_errors(report):
    for loss in TAILS:
        for k in KS:
            figure = report["errors"][loss][f"top{k}-float16"]
            assert figure["ratio"] == pytest.approx(figure["reference"]["median"] / figure["student"]["median"])
            assert figure["ratio"] > 1.5


def test_an_earlier_student_is_measured_too(report):
    assert report["early"]["steps"] == 1
    assert {*report["early"]["kd"]} == {f"top{k}-float16" for k in KS}


def test_renormalising():
    log_probs = torch.tensor([[0.5, 0.2, 0.15, 0.15]]).log()
    made = renormalised(Targets(log_probs, index=torch.tensor([[1, 0]])))
    assert made.log_probs is not None
    torch.testing.assert_close(made.log_probs.exp(), torch.tensor([[5 / 7, 2 / 7, 0, 0]]))


def test_losses_from_an_exact_cache_are_those_online(report):
    assert {*report["parity"]} == {*report["errors"]} > PARITY
    assert report["max_parity"] == max(report["parity"].values()) <= 1e-6


def test_the_tables(report):
    text = "\n\n".join(draw("few", report))
    row = next(line for line in text.splitlines() if line.startswith("| top16-float16 |"))
    assert row.split(" | ")[2] == f"{error(report, 'kd', 'top16-float16'):.2g}"
    assert f"({error(report, 'kd, T 4', 'top16-float16'):.2g})" in row
    assert "| map-int8 |" in text
    assert "float32 |" not in text
    assert f"| classes | {CLASSES} |" in text


def test_a_teacher_without_features_has_tables_without_them(index, tmp_path):
    lacking = TeacherConfig(model="tests.trainer.tiny:teacher_model", num_classes=CLASSES, input_size=16, device="cpu")
    found = fidelity(make_setup(index, VIEWS, Teacher(lacking)), loss_cases(["kd", "rkd"]), tmp_path, QUICK, 2)
    assert {*found["errors"]} == {*found["parity"]} == {"kd"}
    text = "\n".join(draw("plain", found))
    assert "| not measured | rkd: " in text
    assert "map-" not in text


def test_the_command(index, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "loss_cases", lambda: loss_cases(["kd"]))
    out = tmp_path / "fidelity.md"
    quick = ["--steps", 3, "--batches", 1, "--rows", 16]
    data = ["--index", index.path, "--weights", weights, "--config", settings(tmp_path / "settings.yaml")]
    made = benchmark("fidelity", *data, *quick, "--out", out, "--json")
    assert made.code == 0, made.err
    report = json.loads(made.out)
    assert {*report["errors"]} == {"kd"}
    assert report["command"].startswith("python -m benchmarks fidelity --index ")
    assert json.loads((tmp_path / "fidelity.json").read_text()) == {"train": report}
    assert "<!-- figures: train -->" in out.read_text()
    assert "parity" in made.err
    # Another teacher's figures are added.
    monkeypatch.setattr(command, "fidelity", lambda *_: report)
    again = benchmark("fidelity", *data, *quick, "--out", out, "--name", "second")
    assert again.code == 0, again.err
    assert "top16-float16" in again.out
    assert {*json.loads((tmp_path / "fidelity.json").read_text())} == {"train", "second"}
    assert out.read_text().index("## train") < out.read_text().index("## second")


def test_refusals(index, weights, tmp_path):
    assert "--weights" in refused("fidelity", "--index", index.path)
    assert "--config" in refused("fidelity", "--config", tmp_path / "x.yaml")
    assert "NAME.md" in refused("fidelity", "--index", index.path, "--weights", weights, "--out", "x.txt")


def test_the_document_has_the_tables_of_its_reports(tmp_path):
    for suffix in ("md", "json"):
        shutil.copy(DOCS / f"fidelity.{suffix}", tmp_path)
    write(str(tmp_path / "fidelity.md"), read(str(DOCS / "fidelity.md")), draw)
    for suffix in ("md", "json"):
        assert (tmp_path / f"fidelity.{suffix}").read_text() == (DOCS / f"fidelity.{suffix}").read_text()


def test_the_synthetic_teacher_is_kept(tmp_path, monkeypatch):
    """And read the next time."""
    made = []

    def trained(folder: Path, *_: object) -> str:
        made.append(folder)
        (folder / "best.safetensors").write_text("weights")
        return str(folder / "best.safetensors")

    class Indexes(dict):
        def limit(self, _: object) -> None:
            return None

    indexes = {"train": Indexes()}
    monkeypatch.setattr(command, "synthetic_index", lambda _: indexes)
    monkeypatch.setattr(command, "train_synthetic_teacher", trained)
    kept = tmp_path / "runs" / "teacher.safetensors"
    for _ in range(2):
        _, _, config = command._synthetic(tmp_path, None, str(kept))
        assert config.weights == str(kept)
        assert kept.read_text() == "weights"
    assert len(made) == 1


def test_the_synthetic_teacher(tmp_path, monkeypatch):
    """It is trained from rows of the classifier that share what numbers share; not how good it is."""
    real = synthetic_teacher.prepare_synthetic
    monkeypatch.setattr(synthetic_teacher, "prepare_synthetic", lambda out: real(out, train=256, val=64))
    indexes = synthetic_teacher.synthetic_index(tmp_path)
    assert [len(indexes[name]) for name in ("train", "val")] == [256, 64]
    weights = synthetic_teacher.train_synthetic_teacher(tmp_path, indexes, lambda _: None, epochs=1)
    setup = make_setup(indexes["val"], synthetic_teacher.VIEWS, Teacher(TeacherConfig(weights=weights, form="merged")))
    assert setup.info.num_classes == 1000
    assert setup.info.map is not None
    assert setup.info.map[1:] == (2, 2)
    assert setup.lacks == {}
    assert [case.encoding.k for case in encoding_cases(setup) if case.top][:7] == [1, 5, 10, 16, 32, 64, 100]
