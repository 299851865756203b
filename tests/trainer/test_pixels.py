"""Whether the student's pixels are those of the cache: compared, or said not to be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.cache import Cache, Store, read_canaries
from kdpipe.caching import identity
from kdpipe.errors import ViewError
from kdpipe.shards import Index, build_index
from kdpipe.trainer import train
from tests.shards.making import write_shards
from tests.stages.running import kdpipe, refused
from tests.trainer import tiny


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A cache of twelve shards of a block each, more than have canaries; and an index of one that has none."""
    folder = tmp_path_factory.mktemp("large")
    write_shards(folder / "all", 12, 8, size=20, classes=tiny.CLASSES, kind="png", name="all")
    index = build_index(str(folder / "all"), folder / "all.index", block_size=8)
    url = tiny.make_cache(folder, index, views=(0, "center"))
    with_canaries = {canary.shard for canary in read_canaries(Cache(Store(url)))}
    without = [shard.name for shard in index.shards if shard.name not in with_canaries]
    assert len(with_canaries) == 8
    (folder / "few").mkdir()
    shutil.copy(folder / "all" / without[0], folder / "few")
    build_index(str(folder / "few"), folder / "few.index", block_size=8)
    return folder


def few(large: Path) -> Index:
    return Index.open(large / "few.index")


def test_pixels_that_nothing_is_kept_of_are_said_to_be_unchecked(large, tmp_path):
    said: list[str] = []
    job = tiny.make_job(few(large), cache=str(large / "cache.zarr"), epochs=1, batch_size=8)
    summary = train(job, tmp_path / "run", log=said.append)
    assert [line for line in said if line.startswith("PIXELS UNCHECKED: none of the cache's 64 canaries")] == said[:1]
    assert summary["pixels"][0] == {"student": 16, "teacher": 16, "exact": None, "canaries": "unchecked"}


@pytest.mark.parametrize("tolerance", [0, 1])
def test_who_asks_for_a_comparison_is_refused_without_one(large, tmp_path, tolerance):
    loader = {"canary_tolerance": tolerance}
    job = tiny.make_job(few(large), cache=str(large / "cache.zarr"), epochs=1, batch_size=8, loader=loader)
    with pytest.raises(ViewError, match=r"few.index: pixels can't be compared: .* allowed: .* all-0000.tar, .* \.\.\."):
        train(job, tmp_path / "run", log=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_evaluate_says_so_and_refuses_too(large, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(f"views: {json.dumps(tiny.VIEWS.model_dump(mode='json'))}\nteacher: {{device: cpu}}\n")
    words = ["evaluate", "--config", params, "--index", large / "few.index", "--cache", large / "cache.zarr"]
    words += ["--trust", "tests.trainer"]
    trained = tmp_path / "run" / "last.safetensors"
    train(tiny.make_job(few(large), epochs=1, batch_size=8), tmp_path / "run", log=lambda _: None)
    done = kdpipe(*words, trained, "--json")
    assert done.code == 0, done.err
    assert "PIXELS UNCHECKED" in done.err
    assert "agreement_top1" in json.loads(done.out)
    assert "pixels can't be compared" in refused(*words, trained, "--set", "loader.canary_tolerance=0")
    whole = kdpipe(*words, trained, "--index", large / "all.index", "--set", "loader.canary_tolerance=0")
    assert (whole.code, whole.err.count("UNCHECKED")) == (0, 0), whole.err


def test_pixels_that_differ_are_refused_and_one_level_only_where_permitted(index, cache, tmp_path, monkeypatch):
    def one_level_off(opened: Cache) -> list:
        first, *others = read_canaries(opened)
        pixels = first.pixels.copy()
        pixels[0, 0, 0] ^= 1
        return [replace(first, pixels=pixels), *others]

    monkeypatch.setattr(identity, "read_canaries", one_level_off)
    for loader in ({}, {"canary_tolerance": 0}):
        with pytest.raises(ViewError, match="1 of 44 cached views look different"):
            train(tiny.make_job(index, cache=cache, loader=loader), tmp_path / "run", log=lambda _: None)
    job = tiny.make_job(index, cache=cache, loader={"canary_tolerance": 1}, epochs=1)
    pixels = train(job, tmp_path / "run", log=lambda _: None)["pixels"][0]
    assert (pixels["exact"], pixels["canaries"]) == (False, 44)
