"""`kdpipe plan`: what it prints, that it leaves nothing, what it refuses."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdpipe.shards import Index
from kdpipe_stages.plan import _remarks
from kdpipe_stages.plan_text import duration, size
from tests.stages.running import kdpipe, refused
from tests.tiny import SIZE, World

TEACHER = [
    *("--teacher", "tests.tiny:network", "--num-classes", "7", "--input-size", SIZE, "--batch-size", 16),
    *("--set", "teacher.mean=[0.5,0.5,0.5]", "--set", "teacher.std=[0.25,0.25,0.25]", "--set", "teacher.threads=1"),
    *("--set", "views.crop_pct=1", "--k", 4, "--seconds", 2),
]
STUDENT = ["--student", "tests.tiny:network", "--set", f"student.input_size={SIZE}", "--student-batch-size", 16]


def forecast(world: World, *words: object) -> dict:
    result = kdpipe("plan", "--index", world.index_path, *TEACHER, *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def about(low: float, mid: float, high: float) -> dict[str, float]:
    return {"low": low, "mid": mid, "high": high}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[dict, Path]:
    """A forecast with a student, and the folder that was the one for temporary files meanwhile."""
    from tests.tiny import make_world

    folder = tmp_path_factory.mktemp("plan")
    world = make_world(folder / "world")
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder / "tmp"))
        said = forecast(world, *STUDENT, "--views", "0:4,center", "--epochs", 3, "--machines", "1,3")
    return said, folder


def test_everything_is_in_json(report):
    said, _ = report
    assert said["samples"] == 94
    assert said["views"] == 94 * 5
    assert said["tasks"] == 2 * 3
    assert [e["name"] for e in said["encodings"]] == [
        "top1-float16",
        "top4-float16",
        "top5-float16",
        "dense-float16",
        "dense-float32",
    ]
    assert [e["name"] for e in said["encodings"] if e["chosen"]] == ["top4-float16"]
    assert [m["machines"] for m in said["machines"]] == [1, 3]
    assert said["sampled"]["samples"] <= 32
    assert any("small" in remark for remark in said["remarks"])
    student = said["student"]
    assert student["epochs"] == 3
    assert student["batch_size"] == 16
    assert 0 < student["seconds_cached"]["mid"] < student["seconds_online"]["mid"]
    saved = student["seconds_online"]["mid"] - student["seconds_cached"]["mid"]
    assert student["seconds_saved"]["mid"] == pytest.approx(saved)
    assert student["break_even_students"]["mid"] == pytest.approx(said["machines"][0]["seconds"]["mid"] / saved)


def test_no_file_is_left(report):
    _, folder = report
    assert list((folder / "tmp").iterdir()) == []
    assert {p.name for p in folder.iterdir()} == {"world", "tmp"}


def test_tables_for_people(world):
    result = kdpipe("plan", "--index", world.index_path, *TEACHER, "--views", "0:2", "--machines", "1,2", *STUDENT)
    assert result.code == 0, result.err
    assert re.search(r"top4-float16 \* .*\d+ (to \S+ )?k?B", result.out)
    assert re.search(r"1 +│ \d\S* (to \S+ )?(s|min)", result.out)
    assert "from the cache" in result.out
    assert "teacher online" in result.out


def test_several_gpus_are_said_to_be_used(world, report):
    measured = SimpleNamespace(threads=8, sample=[0, 0])
    said = {**report[0], "teacher": {"device": "cuda"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.teacher.devices_here", lambda: ["cuda:0", "cuda:1"])
        assert any("uses all 2 GPUs" in remark for remark in _remarks(said, measured, "fastest", []))
        assert not any("GPUs" in remark for remark in _remarks(report[0], measured, "fastest", []))


@pytest.mark.parametrize(
    ("form", "hours", "said"), [("fastest", 2, True), ("fastest", 0.2, False), ("merged", 2, False)]
)
def test_long_runs_try_what_a_plan_has_no_time_for(report, form, hours, said):
    long = {**report[0], "device_seconds": {"mid": 3600 * hours}}
    remarks = _remarks(long, SimpleNamespace(threads=8, sample=[0, 0]), form, [])
    assert any("compile" in remark for remark in remarks) == said


def test_without_a_student_there_is_none(world):
    assert forecast(world)["student"] is None


def test_a_limit_is_a_smaller_cache(world):
    one, other = forecast(world), forecast(world, "--limit", 45)
    assert other["samples"] == 45
    assert other["tasks"] == 2
    assert other["encodings"][1]["bytes"]["mid"] < one["encodings"][1]["bytes"]["mid"]


class TestUnits:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (about(12.31e9, 13e9, 14.1e9), "12.3 to 14.1 GB"),
            (about(998, 999, 999.4), "998 to 999 B"),
            (about(0.9e6, 1e6, 1.2e6), "0.90 to 1.20 MB"),
            (about(2e12, 2e12, 2e12), "2.00 TB"),
            (about(0, 0, 0), "0 B"),
        ],
    )
    def test_bytes(self, value, text):
        assert size(value) == text

    def test_seconds(self):
        assert duration(about(3000, 3700, 5400)) == "0.83 to 1.50 h"
        assert duration(about(10, 20, 30)) == "10.0 to 30.0 s"
        assert duration(about(2e6, 3e6, 4e6)) == "23.1 to 46.3 days"


class TestRefusals:
    def test_no_weights(self, world):
        assert "no weights" in refused("plan", "--index", world.index_path, "--teacher", "resnet10t")

    def test_machines(self, world):
        for text in ("0", "1,x", ""):
            assert "--machines" in refused("plan", "--index", world.index_path, *TEACHER, "--machines", text)

    def test_workers_are_cache_teachers(self, world):
        result = kdpipe("plan", "--index", world.index_path, *TEACHER, "--workers", 4)
        assert result.code == 2
        assert "--workers" in result.err

    def test_views(self, world):
        assert "invalid --views" in refused("plan", "--index", world.index_path, *TEACHER, "--views", "3:1")

    def test_a_loss_without_a_teacher(self, world):
        words = [*TEACHER, *STUDENT, "--set", "loss.name=none"]
        assert "the loss takes nothing" in refused("plan", "--index", world.index_path, *words)

    def test_a_student_that_can_not_run(self, world):
        words = [*TEACHER, "--student", "no_such_net"]
        assert "no_such_net" in refused("plan", "--index", world.index_path, *words)

    def test_labels_beyond_the_classes(self, world):
        assert Index.open(world.index_path).labels.max() > 2
        assert "label out of range" in refused(
            "plan", "--index", world.index_path, "--teacher", "tests.tiny:network", "--num-classes", 3
        )
