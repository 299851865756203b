"""The path a user walks: cache, verify, inspect, train, evaluate, as commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.targets import Quality
from kdpipe.verification.verify import verify_cache
from tests.stages.running import kdpipe
from tests.stages.test_mistakes import caching, training
from tests.tiny import CLASSES, World, make_world, recommit, tree


def test_cache_teacher_says_what_it_made(world, tmp_path):
    result = kdpipe(*caching(world, tmp_path / "c", "--views", "0:2,center", "--k", 3, "--json"))
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["cached"] == "0:2,center"
    assert (summary["tasks"], summary["skipped"], summary["views"]) == (6, 0, 3 * 94)
    assert 0 <= summary["teacher_top1"] < summary["teacher_top5"] <= 1
    assert 0.5 < summary["retained_mass"] < 1
    assert 0 < summary["encoding_loss"] < 1
    assert summary["bytes_per_view"] == summary["bytes"] / (3 * 94)
    again = kdpipe(*caching(world, tmp_path / "c", "--views", "0:2,center", "--k", 3))
    assert "0 tasks done, 6 were there" in again.out
    assert f"{3 * 94} views, {summary['bytes_per_view']:.1f} bytes a view" in again.out
    assert "retained mass" in again.out


def test_every_class_kept_in_float32_loses_nothing(world, tmp_path):
    flags = ["--targets", "dense", "--dtype", "float32", "--json"]
    summary = json.loads(kdpipe(*caching(world, tmp_path / "c", *flags)).out)
    assert summary["encoding_loss"] < 1e-9
    assert summary["retained_mass"] == pytest.approx(1)


def test_verify_finds_a_good_cache_good(cache_path):
    result = kdpipe("verify", cache_path, "--json", "--samples", 60, "--trust", "tests")
    assert result.code == 0, result.out
    report = json.loads(result.out)
    assert report["ok"]
    assert report["integrity"]["commits"] == 6
    assert report["canaries"] == {"views": 54, "changed": 0, "pixels": 0.0, "levels": 0, "ok": True}
    truth = report["truth"]
    assert truth["views"] >= 60
    assert truth["difference"] <= truth["tolerance"]
    assert truth["truncation"] > 1e-3  # 4 of 7 classes
    assert abs(truth["quantisation"]) < 1e-4
    assert "ok" in kdpipe("verify", cache_path, "--trust", "tests").out
    assert verify_cache(str(cache_path), samples=60, trust=("tests",)).json() == report


def test_verify_lists_damage_and_exits_with_1(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[30] ^= 4
    chunk.write_bytes(data)
    result = kdpipe("verify", tmp_path / "c.zarr", "--trust", "tests")
    assert result.code == 1
    assert "integrity: " in result.out
    assert "log_prob/c/0/1/0/0: its bytes are not those that were written" in result.out


def lie(cache: Cache, world: World) -> None:
    """Replace one task's targets by those of its neighbours, with all records and checksums in order."""
    segment, shard = cache.segments[0], world.index.shards[1]
    parts = [ArrayReader(cache).read(segment, shard.name, v, 0, shard.samples) for v in segment.views]
    fields = {name: np.stack([p[name][::-1] for p in parts]) for name in parts[0]}
    quality = Quality(**cache.commits[segment.name, shard.name]["quality"])
    recommit(cache, segment, 1, fields, quality)


def test_verify_catches_targets_of_other_samples(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    lie(Cache(Store(tmp_path / "c.zarr")), world)
    assert kdpipe("verify", tmp_path / "c.zarr", "--integrity-only").code == 0
    result = kdpipe("verify", tmp_path / "c.zarr", "--samples", 300, "--json", "--trust", "tests")
    assert result.code == 1
    report = json.loads(result.out)
    assert report["integrity"]["ok"]
    assert report["truth"]["failures"]
    assert all("shard-0001.tar" in f["where"] for f in report["truth"]["failures"])


def test_verify_runs_each_segment_as_it_was_cached(world, tmp_path):
    assert kdpipe(*caching(world, tmp_path / "c", "--views", "0:1")).code == 0
    assert kdpipe(*caching(world, tmp_path / "c", "--views", "1:2", "--amp-dtype", "bfloat16")).code == 0
    result = kdpipe("verify", tmp_path / "c", "--json", "--samples", 80, "--trust", "tests")
    assert result.code == 0, result.out
    assert json.loads(result.out)["truth"]["views"] >= 160


def test_verify_sees_wrong_label_log_probs(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    cache = Cache(Store(tmp_path / "c.zarr"))
    segment, shard = cache.segments[0], world.index.shards[0]
    parts = [ArrayReader(cache).read(segment, shard.name, v, 0, shard.samples) for v in segment.views]
    fields = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    fields["label_log_prob"] = np.roll(fields["label_log_prob"], 1, axis=1)
    recommit(cache, segment, 0, fields, Quality(**cache.commits[segment.name, shard.name]["quality"]))
    assert kdpipe("verify", tmp_path / "c.zarr", "--samples", 300, "--trust", "tests").code == 1


def test_verify_of_a_cache_with_nothing_in_it(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    shutil.rmtree(tmp_path / "c.zarr" / "segments")
    for folder in (tmp_path / "c.zarr" / "commits").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    result = kdpipe("verify", tmp_path / "c.zarr", "--trust", "tests")
    assert result.code == 2
    assert "nothing is cached yet" in result.err


def test_verify_of_unlabelled_samples(tmp_path):
    half = make_world(tmp_path / "w", unlabelled=0.5)
    assert kdpipe(*caching(half, tmp_path / "c")).code == 0
    assert kdpipe("verify", tmp_path / "c", "--samples", 200, "--trust", "tests").code == 0


def test_a_summary_speaks_of_its_own_encoding(world, tmp_path):
    assert kdpipe(*caching(world, tmp_path / "c", "--views", "0:2", "--k", 2)).code == 0
    dense = ["--views", "0:2", "--targets", "dense", "--dtype", "float32", "--json"]
    summary = json.loads(kdpipe(*caching(world, tmp_path / "c", *dense)).out)
    assert summary["views"] == 2 * 94
    assert summary["encoding_loss"] < 1e-9


def test_verify_needs_the_same_weights_and_shards(world, cache_path, tmp_path):
    moved = make_world(tmp_path / "w")  # the same shards, elsewhere
    assert kdpipe("verify", cache_path, "--index", moved.index_path, "--trust", "tests").code == 0


def test_inspect(cache_path):
    report = json.loads(kdpipe("inspect", cache_path, "--json").out)
    assert report["complete"]
    assert report["complete_views"] == "0:3,center"
    assert report["samples"] == 94
    assert report["identity"]["teacher"]["num_classes"] == CLASSES
    assert [s["shards_done"] for s in report["segments"]] == [3, 3]
    stored = sum(len(d) for name, d in tree(Path(cache_path)).items() if name.startswith("segments/") and "/c/" in name)
    assert report["bytes"] == stored == sum(sum(s["bytes"].values()) for s in report["segments"])
    shown = kdpipe("inspect", cache_path).out
    assert report["root"] in shown
    assert "label_log_prob" in shown


def test_inspect_of_an_unfinished_cache(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    Store(tmp_path / "c.zarr").remove("commits/001-top4-float16-center/shard-0002.tar.json")
    report = json.loads(kdpipe("inspect", tmp_path / "c.zarr", "--json").out)
    assert not report["complete"]
    assert report["complete_views"] == "0:3"
    assert report["segments"][1]["missing"] == ["shard-0002.tar"]


def test_a_student_is_scored_against_its_teachers_center_view(world, cache_path, tmp_path):
    flags = ["--loss", "soft-ce", "--cache", cache_path, "--val", world.index_path, "--lr", 0.05, "--epochs", 8]
    result = kdpipe(*training(world, tmp_path / "r", *flags))
    assert result.code == 0, result.err
    best = tmp_path / "r" / "best.safetensors"
    scores = json.loads(
        kdpipe("evaluate", best, "--trust", "tests", "--index", world.index_path, "--cache", cache_path, "--json").out
    )
    assert scores["samples"] == 94
    assert {"top1", "top5", "nll", "ece", "agreement_top1", "agreement_top5", "kl"} <= scores.keys()
    # The student is the teacher's own network, begun elsewhere: it comes closer than chance.
    assert scores["agreement_top1"] > 2 / CLASSES


def test_limit_works_on_every_stage(world, tmp_path):
    assert kdpipe(*caching(world, tmp_path / "c", "--limit", 50)).code == 0
    flags = ["--loss", "kd", "--cache", tmp_path / "c", "--limit", 50]
    assert kdpipe(*training(world, tmp_path / "r", *flags)).code == 0
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["samples"] == 50
    best = tmp_path / "r" / "best.safetensors"
    scores = json.loads(
        kdpipe("evaluate", best, "--trust", "tests", "--index", world.index_path, "--limit", 30, "--json").out
    )
    assert scores["samples"] == 30
    assert kdpipe("verify", tmp_path / "c", "--trust", "tests").code == 0
    index = kdpipe("index", world.folder / "shards", "--out", tmp_path / "i", "--limit", 40, "--json")
    assert json.loads(index.out)["samples"] == 40


def test_params_sets_and_flags_in_that_order(world, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("train: {lr: 0.1, weight_decay: 0.0, epochs: 3}\n")
    command = training(world, tmp_path / "r", "--loss", "none")
    assert kdpipe(*command, "--config", file, "--set", "train.lr=0.2", "--set", "train.momentum=0.5").code == 0
    config = json.loads((tmp_path / "r" / "summary.json").read_text())["config"]["train"]
    assert (config["lr"], config["weight_decay"], config["epochs"], config["momentum"]) == (0.2, 0.0, 1, 0.5)
