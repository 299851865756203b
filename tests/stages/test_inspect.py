"""`kdpipe inspect`: what a user sees of a cache, whole and unfinished, with labels and without."""

import json
import shutil

import pytest

from kdpipe.cache import Cache, Store
from kdpipe.targets import TargetsConfig
from tests.stages.running import kdpipe, refused
from tests.tiny import RECIPE, make_cache, make_world


@pytest.fixture(scope="module")
def mixed_path(world, tmp_path_factory):
    """A cache under the papers' recipe, all classes kept."""
    path = tmp_path_factory.mktemp("mixed") / "c.zarr"
    make_cache(world, path, config=RECIPE, views=(0, "center"), targets=TargetsConfig(k=7))
    return str(path)


@pytest.fixture
def unfinished(cache_path, tmp_path):
    """A copy that lacks one shard of the first segment and all of the second but one."""
    path = tmp_path / "unfinished.zarr"
    shutil.copytree(cache_path, path)
    store = Store(path)
    for name in ("000-top4-float16-v0-3/shard-0002", *(f"001-top4-float16-center/shard-000{i}" for i in (1, 2))):
        store.remove(f"commits/{name}.tar.json")
    return str(path)


def inspected(*args):
    result = kdpipe("inspect", *args, "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    return json.loads(result.out)


def test_what_the_teacher_says(mixed_path, world):
    report = inspected(mixed_path)
    found = report["statistics"]
    assert (found["samples"], found["of_samples"], found["seed"], found["remark"]) == (94, 94, None, None)
    assert found["labels"] == world.index_path
    assert [(v["segment"], v["view"]) for v in found["views"]] == [
        ("000-top7-float16-v0-1", 0),
        ("001-top7-float16-center", "center"),
    ]
    for view, segment in zip(found["views"], report["segments"], strict=True):
        assert view["teacher_top1"] == segment["teacher_top1"]
        assert view["teacher_top5"] == segment["teacher_top5"]
        assert view["retained_mass"]["7"] == pytest.approx(segment["retained_mass"], rel=1e-3)
        assert view["views"] == sum(view["confidence"]) == sum(view["entropy"]) == 94
    assert found["views"][0]["mixed"] > 80
    assert found["views"][1]["mixed"] == 0
    # Of 94 center views and few others; every wrong first class is a pair.
    assert 94 <= found["unmixed"] < 110
    pairs = [c["views"] for c in found["confusions"]]
    assert pairs == sorted(pairs, reverse=True)
    sure = [c["p"] for c in found["contradictions"]]
    assert len(sure) == 10
    assert sure == sorted(sure, reverse=True)
    for c in found["contradictions"]:
        shard = next(s for s in world.index.shards if s.name == c["shard"])
        row = shard.first + world.index.keys(shard.first, shard.first + shard.samples).index(c["key"])
        assert world.index.labels[row] == c["label"] != c["predicted"]


def test_the_tables(mixed_path):
    found, shown = inspected(mixed_path)["statistics"], kdpipe("inspect", mixed_path).out
    shown = shown.split("Read from the arrays: 94 samples.")[1]
    for view in found["views"]:
        row = next(line for line in shown.splitlines() if view["segment"] in line and f" {view['view']} " in line)
        assert f"{100 * view['teacher_top1']:.2f}" in row
        assert f"{100 * view['ece']:.2f}" in row
        assert f"{view['mean_entropy']:.4f}" in row
    for text in (
        "augmented views: entropy",
        "evaluation views: entropy",
        "█",
        "k = 4",
        "most confused",
        "leave them out",
    ):
        assert text in shown
    for c in found["contradictions"]:
        assert any(c["key"] in line and f"{c['p']:.4f}" in line for line in shown.splitlines())


def test_top(mixed_path):
    found = inspected(mixed_path, "--top", 3)["statistics"]
    assert (len(found["confusions"]), len(found["contradictions"])) == (3, 3)
    none = kdpipe("inspect", mixed_path, "--top", 0).out
    assert "most confused" not in none
    assert "contradicted" not in none


def test_a_seeded_part(mixed_path):
    found = inspected(mixed_path, "--samples", 30, "--seed", 4)["statistics"]
    assert 30 <= found["samples"] < 46
    assert (found["of_samples"], found["seed"]) == (94, 4)
    assert {v["views"] for v in found["views"]} == {found["samples"]}
    shown = kdpipe("inspect", mixed_path, "--samples", 30, "--seed", 4).out
    assert f"{found['samples']} samples of 94, chosen with seed 4" in shown


def test_records_alone_touch_no_array(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    for chunk in (tmp_path / "c.zarr" / "segments").glob("*/*/c"):
        shutil.rmtree(chunk)
    report = inspected(tmp_path / "c.zarr", "--no-statistics")
    assert "statistics" not in report
    assert report["complete"]
    assert report["segments"][0]["teacher_top5"] is not None
    assert "label_log_prob" in kdpipe("inspect", tmp_path / "c.zarr", "--no-statistics").out
    assert "its size is wrong" in refused("inspect", tmp_path / "c.zarr")


def test_what_is_missing(unfinished):
    report = inspected(unfinished)
    first, second = (s["name"] for s in report["segments"])
    assert report["shards"] == [
        {"done": [first, second], "missing": [], "samples": 40, "names": ["shard-0000.tar"]},
        {"done": [first], "missing": [second], "samples": 33, "names": ["shard-0001.tar"]},
        {"done": [], "missing": [first, second], "samples": 21, "names": ["shard-0002.tar"]},
    ]
    assert [v["views"] for v in report["statistics"]["views"]] == [73, 73, 73, 40]
    assert report["statistics"]["of_samples"] == 73
    lines = kdpipe("inspect", unfinished, "--no-statistics").out.splitlines()
    assert any("shard-0001.tar" in line and second in line and " 33 " in line for line in lines)
    assert any("shard-0002.tar" in line and "everything" in line for line in lines)


def test_nothing_committed(unfinished):
    for name in Store(unfinished).files("commits"):
        if name.endswith(".tar.json"):
            Store(unfinished).remove(name)
    report = inspected(unfinished)
    assert report["statistics"]["views"] == []
    assert not report["complete"]
    assert kdpipe("inspect", unfinished).code == 0


def test_without_the_index_the_rest_is_printed(tmp_path):
    gone = make_world(tmp_path / "w")
    make_cache(gone, tmp_path / "c.zarr", views=(0,))
    with_labels = inspected(tmp_path / "c.zarr")["statistics"]
    (tmp_path / "w" / "index").rename(tmp_path / "moved")
    found = inspected(tmp_path / "c.zarr")["statistics"]
    assert found["labels"] is None
    assert found["remark"].startswith("without labels: ")
    assert "no index there" in found["remark"]
    assert (found["confusions"], found["contradictions"]) == ([], [])
    assert {found["views"][0][name] for name in ("labelled", "mixed", "teacher_top1", "teacher_top5", "ece")} == {None}
    assert found["views"][0]["mean_entropy"] == with_labels["views"][0]["mean_entropy"]
    shown = kdpipe("inspect", tmp_path / "c.zarr").out
    assert "no index there" in shown
    assert "augmented views: entropy" in shown
    assert "right %" not in shown
    # An index that is named must do; so does one that was moved.
    assert inspected(tmp_path / "c.zarr", "--index", tmp_path / "moved")["statistics"]["remark"] is None
    assert "no index there" in refused("inspect", tmp_path / "c.zarr", "--index", tmp_path / "w" / "index")
    (tmp_path / "c.zarr" / "provenance.json").unlink()
    assert "provenance is missing" in inspected(tmp_path / "c.zarr")["statistics"]["remark"]


def test_an_index_of_other_samples_is_refused(cache_path, tmp_path):
    other = make_world(tmp_path / "w", seed=9)
    assert "the cache was made with another" in refused("inspect", cache_path, "--index", other.index_path)


def test_unlabelled_samples(tmp_path):
    world = make_world(tmp_path / "w", unlabelled=1.0)
    make_cache(world, tmp_path / "c.zarr", views=(0,))
    found = inspected(tmp_path / "c.zarr")["statistics"]
    assert (found["remark"], found["unmixed"], found["views"][0]["labelled"]) == (None, 0, 0)
    assert found["views"][0]["ece"] is None
    assert kdpipe("inspect", tmp_path / "c.zarr").code == 0


def test_a_damaged_chunk_is_named(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[30] ^= 4
    chunk.write_bytes(data)
    line = refused("inspect", tmp_path / "c.zarr")
    assert "log_prob/c/0/1/0/0: a chunk of the cache is damaged" in line


def test_a_cache_of_an_earlier_policy(cache_path, world, monkeypatch):
    """Its records and distributions can be looked at; its labels might be of other mixtures."""
    monkeypatch.setattr("kdpipe.cache.cache.POLICY_VERSION", Cache(Store(cache_path)).identity["views"]["version"] + 1)
    found = inspected(cache_path)["statistics"]
    assert "another policy version" in found["remark"]
    assert len(found["views"]) == 4


def test_a_class_whose_name_is_its_number_is_printed_once():
    from kdpipe_stages.inspect_tables import _class

    assert [_class({"classes": ["0", "dog"]}, number) for number in (0, 1, 2)] == ["0", "1 dog", "2"]
