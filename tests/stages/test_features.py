"""Features on the command line: cached, checked, shown and forecast."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.cache.layout import part_file, part_record
from kdpipe.cache.modules import put_part, read_part
from kdpipe.targets import Quality
from tests.caching.featured import settings
from tests.stages.running import kdpipe, refused
from tests.tiny import VIEWS, recommit

TINY = ["--teacher", "tests.teacher.users:users", "--num-classes", "10", "--input-size", "16", "--batch-size", "8"]
HOW = [f"views.{name}={getattr(VIEWS, name)}" for name in ("seed", "interpolation", "crop_pct")]
HOW += ["teacher.threads=1", "caching.render_threads=1"]


def caching(world, out: Path, *flags: object, teacher: list[str] | None = None) -> tuple[object, ...]:
    sets = [word for how in HOW for word in ("--set", how)]
    return "cache-teacher", "--index", world.index_path, "--out", out, *(teacher or TINY), *sets, *flags


@pytest.fixture(scope="module")
def slak(tmp_path_factory) -> list[str]:
    said = settings("slak", tmp_path_factory.mktemp("slak"))
    flags = ["--teacher", said["model"], "--weights", said["weights"], "--input-size", said["input_size"]]
    return [str(flag) for flag in [*flags, "--num-classes", said["num_classes"], "--batch-size", 8]]


@pytest.fixture(scope="module")
def made(world, slak, tmp_path_factory) -> Path:
    """Logits, both features and both parts of a SLaK, of one view and center; not to be changed."""
    out = tmp_path_factory.mktemp("made") / "c"
    flags = [
        "--views",
        "0:1,center",
        "--k",
        3,
        "--pooled",
        "float16",
        "--feature-map",
        "int8",
        "--feature-map-rank",
        8,
        "--last-stage",
    ]
    result = kdpipe(*caching(world, out, *flags, teacher=slak))
    assert result.code == 0, result.err
    return out


@pytest.fixture
def copied(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "c")
    return tmp_path / "c"


class TestCaching:
    def test_what_is_lost_is_said(self, world, tmp_path):
        flags = ["--targets", "none", "--pooled", "int8", "--feature-map", "float16", "--feature-map-rank", 2]
        said = kdpipe(*caching(world, tmp_path / "c", *flags)).out
        assert "retained mass" not in said
        assert "pooled: mean relative squared error " in said
        assert "; 2 components hold " in said
        assert " % of the variance of 94 views" in said
        summary = json.loads(kdpipe(*caching(world, tmp_path / "c", *flags, "--json")).out)
        assert (summary["tasks"], summary["skipped"]) == (0, 3)
        assert summary["encoding"] == "pooled-int8+map-float16-r2"
        assert summary["retained_mass"] is None
        assert 0 < summary["pooled_error"] < 1e-3 < summary["map_error"] < 1
        assert summary["calibration"]["rank"] == 2
        assert 0.3 < summary["calibration"]["explained"] < 1
        assert summary["parts"] == [summary["calibration"]["part"], "head"]

    def test_a_basis_from_another_cache(self, world, tmp_path):
        flags = ["--targets", "none", "--feature-map", "int8", "--feature-map-rank", 2, "--json"]
        first = json.loads(kdpipe(*caching(world, tmp_path / "a", *flags)).out)
        more = [*flags, "--views", 3, "--calibration-from", tmp_path / "a"]
        second = json.loads(kdpipe(*caching(world, tmp_path / "b", *more)).out)
        assert second["calibration"] == first["calibration"]
        none = caching(world, tmp_path / "c", "--calibration-from", tmp_path / "a")
        assert "there is no map to calibrate" in refused(*none)

    def test_a_record_of_features(self, world, tmp_path):
        flags = ["--targets", "none", "--pooled", "float32", "--manifest", tmp_path / "cache.json"]
        assert kdpipe(*caching(world, tmp_path / "c", *flags)).code == 0
        said = json.loads((tmp_path / "cache.json").read_text())
        assert said["encoding"]["pooled"]["dtype"] == "float32"
        assert said["quality"]["pooled_error"] == 0

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--targets", "none"], r"targets.kind none keeps nothing; add targets.pooled or targets.map"),
            (["--feature-map-rank", 3], "map_rank 3 needs a feature map, and none is kept"),
            (["--pooled", "float16", "--teacher", "tests.tiny:network"], "has no forward_features"),
            (["--feature-map", "float16", "--last-stage"], "no last stage that can be taken out"),
        ],
    )
    def test_what_cannot_be_kept_is_one_line(self, world, tmp_path, flags, message):
        assert message in refused(*caching(world, tmp_path / "c", *flags))
        assert not (tmp_path / "c").exists()


class TestVerify:
    def test_a_true_cache(self, made):
        result = kdpipe("verify", made, "--samples", 60, "--json")
        assert result.code == 0, result.out
        report = json.loads(result.out)
        assert report["parts"] == {"head": {"ok": True}, "tail": {"ok": True}, "ok": True}
        truth = report["truth"]
        assert truth["difference"] <= truth["tolerance"]
        assert set(truth["features"]) == {"pooled", "map"}
        for feature in truth["features"].values():
            assert feature["views"] == truth["views"] >= 60
            assert feature["difference"] <= feature["tolerance"] < 1e-3
        assert 1e-9 < truth["features"]["pooled"]["error"] < 1e-6 < truth["features"]["map"]["error"] < 0.5
        said = kdpipe("verify", made).out
        assert "tail: that of the teacher: ok" in said
        assert "map: cached against live" in said

    def test_features_alone_and_added_later(self, world, tmp_path):
        out = tmp_path / "c"
        assert kdpipe(*caching(world, out, "--targets", "none", "--feature-map", "float32")).code == 0
        truth = json.loads(kdpipe("verify", out, "--trust", "tests", "--json").out)["truth"]
        assert (truth["ok"], truth["control"], truth["truncation"]) == (True, None, None)
        assert truth["features"]["map"]["error"] == 0
        assert kdpipe(*caching(world, out, "--k", 3)).code == 0
        assert kdpipe(*caching(world, out, "--targets", "none", "--pooled", "int8")).code == 0
        report = json.loads(kdpipe("verify", out, "--trust", "tests", "--json", "--samples", 90).out)
        assert report["ok"]
        assert report["truth"]["truncation"] > 0
        assert {n: f["views"] for n, f in report["truth"]["features"].items()} == {"pooled": 94, "map": 94}
        assert report["truth"]["views"] == 3 * 94

    @pytest.mark.parametrize(("field", "group"), [("pooled", "pooled"), ("map", "map"), ("map_scale", "map")])
    def test_a_changed_feature_is_found(self, world, copied, field, group):
        """By a few steps of its dtype, with all records in order."""
        cache = Cache(Store(copied))
        segment, shard = cache.segments[0], world.index.shards[1]
        parts = [ArrayReader(cache).read(segment, shard.name, v, 0, shard.samples) for v in segment.views]
        fields = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
        fields[field] = fields[field] + np.array(2, "int8") if field == "map" else fields[field] * np.float16(1.05)
        fields[field] = fields[field].clip(-127, 127) if field == "map" else fields[field]
        recommit(cache, segment, 1, fields, Quality(**cache.commits[segment.name, shard.name]["quality"]))
        assert kdpipe("verify", copied, "--integrity-only").code == 0
        result = kdpipe("verify", copied, "--samples", 180, "--json")
        assert result.code == 1
        failures = json.loads(result.out)["truth"]["failures"]
        assert {f["group"] for f in failures} == {group}
        assert all("shard-0001.tar" in f["where"] for f in failures)

    @pytest.mark.parametrize("name", ["head", "tail"])
    def test_another_part_is_found(self, copied, name):
        """With a record that says it is this teacher's, and with probes of its own."""
        cache = Cache(Store(copied))
        tensors, about = read_part(cache, name)
        for file in (part_file(name), part_record(name)):
            cache.store.remove(file)
        del cache.parts[name]
        key = "bias" if name == "head" else next(k for k in tensors if k.endswith("fc2.bias"))
        tensors[key] = tensors[key] + 0.5
        put_part(cache, name, tensors, about)
        assert kdpipe("verify", copied, "--integrity-only").code == 0
        result = kdpipe("verify", copied, "--samples", 16, "--json")
        assert result.code == 1
        parts = json.loads(result.out)["parts"]
        assert [n for n in ("head", "tail") if not parts[n]["ok"]] == [name]
        assert "its outputs for the probes differ" in parts[name]["what"]
        if name == "head":
            tensors["probe_outputs"] = tensors["probe_outputs"] + 0.5
            for file in (part_file(name), part_record(name)):
                cache.store.remove(file)
            del cache.parts[name]
            put_part(cache, name, tensors, about)
            parts = json.loads(kdpipe("verify", copied, "--samples", 16, "--json").out)["parts"]
            assert parts["head"]["what"] == "its bias is not the teacher's"


class TestInspect:
    def test_segments_parts_and_logits(self, made):
        report = json.loads(kdpipe("inspect", made, "--json").out)
        fields = ["index", "log_prob", "label_log_prob", "pooled", "map", "map_scale"]
        assert [list(s["bytes"]) for s in report["segments"]] == [fields, fields]
        assert report["segments"][0]["map_error"] > 0
        assert [part["name"].partition("-")[0] for part in report["parts"]] == ["calibration", "head", "tail"]
        assert all(part["bytes"] > 0 for part in report["parts"])
        assert report["parts"][2]["stage"] == "stages.3"
        assert len(report["statistics"]["views"]) == 2
        said = kdpipe("inspect", made).out
        assert "8 components with" in said
        assert "of weights" in said

    def test_of_features_alone(self, world, tmp_path):
        assert kdpipe(*caching(world, tmp_path / "c", "--targets", "none", "--pooled", "float16")).code == 0
        report = json.loads(kdpipe("inspect", tmp_path / "c", "--json").out)
        assert report["statistics"]["views"] == []
        [segment] = report["segments"]
        assert segment["retained_mass"] is None
        assert 0 <= segment["teacher_top1"] < 1
        said = kdpipe("inspect", tmp_path / "c").out
        assert "there are no logits to read" in said
        assert kdpipe(*caching(world, tmp_path / "c", "--k", 3)).code == 0
        report = json.loads(kdpipe("inspect", tmp_path / "c", "--json").out)
        assert [v["segment"] for v in report["statistics"]["views"]] == ["001-top3-float16-v0-1"]

    def test_features_are_not_read(self, made, monkeypatch):
        read, names = ArrayReader.read, set()

        def spy(*args):
            out = read(*args)
            names.update(out)
            return out

        monkeypatch.setattr(ArrayReader, "read", spy)
        assert kdpipe("inspect", made).code == 0
        assert names == {"index", "log_prob", "label_log_prob"}


class TestPlan:
    @pytest.mark.parametrize("kind", ["none", pytest.param("topk", marks=pytest.mark.slow)])
    def test_bytes_and_files_as_then_cached(self, world, slak, tmp_path, kind):
        flags = [
            "--views",
            "0:2,center",
            "--targets",
            kind,
            "--pooled",
            "float16",
            "--feature-map",
            "int8",
            "--feature-map-rank",
            8,
        ]
        command = caching(world, tmp_path / "c", *flags, "--last-stage", teacher=slak)
        asked = [word for word in command[1:] if word not in ("--out", tmp_path / "c")]
        report = json.loads(kdpipe("plan", *asked, "--seconds", 5, "--json").out)
        [chosen] = [e for e in report["encodings"] if e["chosen"]]
        assert kdpipe(*command).code == 0
        cache = Cache(Store(tmp_path / "c"))
        stored, views = sum(cache.bytes(s) for s in cache.segments), 3 * 94
        assert chosen["bytes"]["mid"] == pytest.approx(stored, rel=0.2)
        assert chosen["files"] == len(cache.store.files())
        means = cache.quality(cache.segments[0]).means()
        assert chosen["pooled_error"] == pytest.approx(means["pooled_error"], rel=0.3)
        assert chosen["map_error"] == pytest.approx(means["map_error"], rel=0.3)
        assert (chosen["retained_mass"] is None) == (kind == "none")
        beside = sum(part["bytes"] for part in cache.parts.values())
        assert report["part_bytes"] == pytest.approx(beside, rel=0.2)
        assert report["views"] == views
        by_name = {e["name"].partition("map-")[2]: e for e in report["encodings"] if "pooled-float16" in e["name"]}
        assert by_name["int8-r8"]["map_error"] > 10 * by_name["int8"]["map_error"] > 0
        assert by_name["int8"]["bytes"]["mid"] > 2 * by_name["int8-r8"]["bytes"]["mid"]

    def test_in_words(self, world):
        flags = ["--index", world.index_path, *TINY, "--targets", "none", "--feature-map", "float16", "--seconds", 5]
        said = kdpipe("plan", *flags).out
        assert "error, map" in said
        assert "stored once" in said
        assert "map-int8" in said

    def test_what_cannot_be_kept_is_one_line(self, world):
        assert "no last stage" in refused(
            "plan", "--index", world.index_path, *TINY, "--feature-map", "int8", "--last-stage"
        )


@pytest.mark.slow
def test_workers_of_a_local_cluster(world, tmp_path):
    flags = ["--targets", "none", "--pooled", "float16", "--feature-map", "int8", "--feature-map-rank", 2]
    assert kdpipe(*caching(world, tmp_path / "c", *flags, "--workers", 1)).code == 0
    assert kdpipe(*caching(world, tmp_path / "d", *flags)).code == 0
    assert Cache(Store(tmp_path / "c")).root_digest() == Cache(Store(tmp_path / "d")).root_digest()
