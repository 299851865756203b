"""Fidelity: gradients from encoded targets against those from exact ones, and the command that prints their errors."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from kdpipe.fidelity.encodings import encoding_cases
from kdpipe.fidelity.loss_cases import loss_cases
from kdpipe.fidelity.run import encode, measure_fidelity
from kdpipe.fidelity.setup import Setup, make_setup
from kdpipe.fidelity.student import GradientProbe, Student
from kdpipe.losses import LOSSES
from kdpipe.teacher import Teacher, TeacherConfig
from tests.fidelity.tiny import CLASSES, KS, QUICK, VIEWS, settings
from tests.stages.running import kdpipe, refused
from tests.threads import one_thread


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def report(setup: Setup) -> dict[str, Any]:
    with one_thread():
        found = measure_fidelity(setup, encode(setup, QUICK), loss_cases(), QUICK)
    return json.loads(json.dumps(found))  # as a file gives it back


def error(report: dict[str, Any], loss: str, name: str) -> float:
    return report["errors"][loss][name]["student"]["median"]


def test_every_loss_that_has_a_teacher_is_measured(report):
    assert {*report["errors"]} == {*LOSSES, "kd, T 4", "dkd, T 4"} - {"none"}
    assert report["absent"] == {}


def test_exact_targets_have_the_exact_gradient(report):
    exact = [name for name in report["bytes"] if name.endswith("float32") and not name.startswith("top")]
    assert exact == ["dense-float32", "pooled-float32", "map-float32"]
    found = {
        (loss, name): error(report, loss, name)
        for name in exact
        for loss, names in report["errors"].items()
        if name in names
    }
    assert len(found) > len(report["errors"])
    assert max(found.values()) <= 1e-6


@pytest.mark.parametrize("loss", ["kd", "soft-ce", "nkd", "dkd", "scalekd", "kd, T 4", "dist"])
def test_errors_fall_with_k(report, loss):
    errors = [error(report, loss, f"top{k}-float16") for k in KS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > error(report, loss, "dense-float16") > 0


def test_a_bucket_is_exact_for_its_own_definition(report):
    for k in KS:
        assert error(report, "bucket-kd", f"top{k}-float16") < 1e-3


def test_a_map_from_the_cache_has_the_strides_of_an_online_one(setup):
    [shown] = setup.batches(1, 16, epoch=9)
    for case in encoding_cases(setup):
        decoded = case.targets(setup, shown).map
        assert decoded is not None
        assert decoded.stride() == shown.exact.map.stride()


def test_float16_loses_less_than_int8_and_a_basis_more(report):
    for name in ("srrl", "rkd", "simkd"):
        assert error(report, name, "pooled-float16") < error(report, name, "pooled-int8") < 0.05
    for name in ("fd", "fitnets", "mgd", "norm", "cap-dfm", "scalekd"):
        assert error(report, name, "map-float16") < error(report, name, "map-int8") < 0.05
        ranks = [error(report, name, f"map-float16-r{rank}") for rank in (3, 6, 12)]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[-1] > error(report, name, "map-int8")


def test_what_kdpipe_refuses_is_marked(report):
    refused = {n for n, each in report["errors"].items() if any(figure.get("refused") for figure in each.values())}
    assert refused == {"dist", "kd, T 4", "dkd, T 4"}
    assert error(report, "kd, T 4", "top16-float16") > 5 * error(report, "kd", "top16-float16")


def test_bytes_are_those_of_a_cache(report):
    sizes = report["bytes"]
    assert sizes["map-int8"]["plain"] == 4 * (24 + 2)
    assert sizes["top16-float16"]["plain"] == 16 * (1 + 2) + 2
    assert all(size["stored"] > 0 for size in sizes.values())
    assert sizes["map-int8"]["stored"] < sizes["map-float16"]["stored"] < sizes["map-float32"]["stored"]


@pytest.mark.parametrize("name", ["dist", "fd", "norm"])
def test_the_term_of_the_labels_is_left_out(setup, name):
    [case] = loss_cases([name])
    probe = GradientProbe(Student(setup, 2, 16).distillation(case.config), case)
    [shown] = setup.batches(1, 16, epoch=9)
    others = replace(shown, batch=replace(shown.batch, labels=shown.batch.labels.roll(1)))
    ours, theirs = (probe.gradient(one, one.exact)["student"] for one in (shown, others))
    assert ours.norm() > 0
    assert torch.equal(ours, theirs)


def test_a_teacher_without_features_is_measured_as_far_as_possible(index):
    lacking = TeacherConfig(model="tests.trainer.tiny:teacher_model", num_classes=CLASSES, input_size=16, device="cpu")
    setup = make_setup(index, VIEWS, Teacher(lacking))
    assert {*setup.lacks} == {"pooled", "map", "head", "tail"}
    assert {case.kind for case in encoding_cases(setup)} == {"logits"}
    found = measure_fidelity(setup, encode(setup, QUICK), loss_cases(["kd", "rkd"]), QUICK)
    assert {*found["errors"]} == {"kd"}
    assert "pooled" in found["absent"]["rkd"] or "forward" in found["absent"]["rkd"]


def test_the_command(index, weights, tmp_path):
    before = {path: path.read_bytes() for path in index.path.iterdir()}
    config = settings(tmp_path / "settings.yaml")
    words = ["--index", index.path, "--weights", weights, "--config", config, "--loss", "kd", "--loss", "kd, T 4"]
    words += ["--steps", 3, "--batches", 1, "--rows", 16]
    printed = kdpipe("fidelity", *words)
    assert printed.code == 0, printed.err
    as_json = json.loads(kdpipe("fidelity", *words, "--json").out)
    assert {*as_json["errors"]} == {"kd", "kd, T 4"}
    figure = f"{error(as_json, 'kd', 'top16-float16'):.2g}"
    size = f"{as_json['bytes']['top16-float16']['stored']:,.0f}"
    rows = [line.split() for line in printed.out.splitlines()]
    assert ["kd", "top16-float16", figure, size] in rows
    assert "requires all classes" in next(line for line in printed.out.splitlines() if line.startswith("kd, T 4"))
    assert {path: path.read_bytes() for path in index.path.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_refusals(index, weights, tmp_path):
    given = ("fidelity", "--index", index.path, "--weights", weights)
    assert "no index" in refused("fidelity", "--index", tmp_path / "no", "--weights", weights)
    assert "not a loss with a teacher; found none" in refused(*given, "--loss", "none")
    mixed = settings(tmp_path / "mixed.yaml", "{mixup: 0.8, mix: targets}")
    assert "views.mix" in refused(*given, "--config", mixed, "--loss", "kd")
