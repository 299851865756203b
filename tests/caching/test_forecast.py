"""A forecast comes true: bytes within 20 %, files exactly, hours about, from a small part of the samples."""

import itertools
import time

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

from kdpipe.cache import Store
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import ShardError, TeacherError
from kdpipe.estimate.forecast import forecast, sampled
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.measure import measure
from kdpipe.estimate.sampling import choose_blocks, choose_views
from kdpipe.shards import build_index
from kdpipe.targets import TargetsConfig
from tests.shards.making import write_shards
from tests.tiny import CLASSES, RECIPE, VIEWS, World, network, teacher

THREADS = CachingConfig(render_threads=2)
# More than it takes, however busy the machine is: so what is looked at doesn't depend on the machine.
ENOUGH = 60


def sleepy() -> nn.Module:
    """The tiny network with a rest before each answer."""

    class Rest(nn.Module):
        def forward(self, x):
            time.sleep(0.25)
            return x

    return nn.Sequential(Rest(), network())


def broken() -> nn.Module:
    class Broken(nn.Module):
        def forward(self, x):
            return x * float("nan")

    return nn.Sequential(network(), Broken())


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> World:
    """Large enough that two blocks are a small part: 6 shards of unequal length in blocks of 64."""
    folder = tmp_path_factory.mktemp("large")
    counts = [250, 221, 256, 201, 230, 193]
    write_shards(folder / "shards", len(counts), counts, size=24, classes=CLASSES, seed=5)
    return World(folder, build_index(str(folder / "shards"), folder / "index", block_size=64))


def foreseen(world: World, views, targets=None, machines=(1,), seconds=ENOUGH, policy=VIEWS, **changes):
    t, targets = teacher(**changes), targets or TargetsConfig(k=4)
    measured = measure(world.index, policy, t, targets, views, caching=THREADS, seconds=seconds)
    return forecast(world.index, measured, views, machines, 0.0), measured


class TestBytes:
    @pytest.mark.parametrize(
        ("policy", "targets"),
        [
            (VIEWS, TargetsConfig(k=4)),
            (RECIPE, TargetsConfig(k=5, dtype="float32")),
            (VIEWS, TargetsConfig(kind="dense")),
        ],
        ids=["topk", "recipe", "dense"],
    )
    def test_as_then_cached(self, large, tmp_path, policy, targets):
        views = [0, 1, 3, "center"]
        said, measured = foreseen(large, views, targets, policy=policy)
        cache, report = cache_views(
            str(tmp_path / "c"), large.index, policy, teacher(), targets, views, caching=THREADS
        )
        [chosen] = [e for e in said["encodings"] if e["chosen"]]
        assert report.bytes == sum(cache.bytes(s) for s in cache.segments)
        assert chosen["bytes"]["mid"] == pytest.approx(report.bytes, rel=0.2)
        assert chosen["bytes"]["low"] <= chosen["bytes"]["mid"] <= chosen["bytes"]["high"]
        assert chosen["bytes_per_view"]["mid"] == pytest.approx(report.bytes / report.quality.views, rel=0.2)
        assert chosen["files"] == len(Store(str(tmp_path / "c")).files())
        assert said["tasks"] == report.tasks
        assert said["views"] == report.quality.views
        means = report.quality.means()
        assert chosen["retained_mass"] == pytest.approx(means["retained_mass"], abs=0.02)
        assert chosen["encoding_loss"] == pytest.approx(means["encoding_loss"], rel=0.6, abs=1e-6)
        assert sampled(large.index, measured)["teacher_top1"] == pytest.approx(means["teacher_top1"], abs=0.15)

    def test_the_others_as_if_they_were_chosen(self, large):
        by_name = {}
        for targets in (TargetsConfig(k=4), TargetsConfig(kind="dense", dtype="float32")):
            said, _ = foreseen(large, [0, 1], targets)
            for e in said["encodings"]:
                by_name.setdefault(e["name"], []).append((e["bytes"]["mid"], e["files"]))
        assert {"top1-float16", "top4-float16", "top5-float16", "dense-float16", "dense-float32"} <= by_name.keys()
        for values in by_name.values():
            assert all(v == (pytest.approx(values[0][0]), values[0][1]) for v in values)

    def test_k_buys_mass_and_costs_bytes(self, large):
        said, _ = foreseen(large, [0])
        top = [e for e in said["encodings"] if e["kind"] == "topk"]
        assert [e["k"] for e in top] == [1, 4, 5]
        for less, more in itertools.pairwise(top):
            assert less["retained_mass"] < more["retained_mass"]
            assert less["encoding_loss"] > more["encoding_loss"]
            assert less["bytes"]["mid"] < more["bytes"]["mid"]
        assert said["encodings"][-1]["name"] == "dense-float32"
        assert said["encodings"][-1]["encoding_loss"] == pytest.approx(0, abs=1e-9)

    def test_nothing_is_left(self, world, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        before = set(MemoryFileSystem.store)
        foreseen(world, [0, "center"])
        assert list(tmp_path.iterdir()) == []
        assert set(MemoryFileSystem.store) == before


class TestSample:
    @pytest.mark.parametrize("share", [0.15, 0.3, 1])
    def test_little_of_it_and_spread(self, large, monkeypatch, share):
        monkeypatch.setattr("kdpipe.estimate.sampling.SHARE", share)
        index = large.index
        chosen = choose_blocks(index)
        rows = [row for block in chosen for row in block]
        assert 0.7 * share * len(index) < len(rows) == len(set(rows)) <= share * len(index)
        assert all(index.rows(index.block_of(block.start)) == block for block in chosen)
        assert len({index.shard_of(block.start).name for block in chosen}) == min(6, len(chosen))
        assert choose_blocks(index) == chosen
        assert choose_blocks(index, seed=1) != chosen

    def test_two_blocks_at_least(self, world):
        assert len(choose_blocks(world.index)) == 2
        assert len(choose_blocks(world.index.limit(10))) == 1

    def test_views_that_stand_for_all(self):
        assert choose_views([*range(98), "center", "top-left"]) == [0, 33, 66, "top-left"]
        assert choose_views([0, 1, "center"]) == [0, 1, "center"]
        assert choose_views(["center"]) == ["center"]

    @pytest.mark.parametrize("samples", [1, 2, 10, 16])
    def test_a_single_block(self, world, samples):
        world = World(world.folder, world.index.limit(samples))
        said, measured = foreseen(world, [0, 1])
        assert sampled(world.index, measured)["samples"] == samples
        assert said["encodings"][0]["bytes"]["mid"] > 0


class TestTime:
    def test_more_machines_take_less(self, large):
        said, _ = foreseen(large, [0, 1, 2], machines=[1, 2, 3, 6, 60])
        start = said["startup_seconds"]
        first, *others = [m["seconds"]["mid"] - start for m in said["machines"]]
        assert first / 2 <= others[0] < 0.6 * first
        assert others[2] == others[3] > first / 7  # there are only six tasks
        assert all(m["seconds"]["low"] <= m["seconds"]["mid"] <= m["seconds"]["high"] for m in said["machines"])

    def test_a_slow_teacher_keeps_to_the_time_and_binds(self, large):
        began = time.monotonic()
        slow = {"model": "tests.caching.test_forecast:sleepy", "batch_size": 16}
        said, measured = foreseen(large, list(range(100)), seconds=4, **slow)
        assert time.monotonic() - began < 20
        assert said["binds"] == "teacher"
        batches = sum(-(-n // 16) for n in np.diff(large.index.block_first)) * 100
        assert said["device_seconds"]["mid"] == pytest.approx(0.25 * batches, rel=0.2)
        assert said["machines"][0]["seconds"]["mid"] == pytest.approx(0.25 * batches, rel=0.25)
        assert len(measured.sample) == 2
        assert sum(-(-len(part.rows) // 16) * len(part.views) for part in measured.sample) * 0.25 < 4

    @pytest.mark.slow
    @pytest.mark.parametrize("policy", [VIEWS, RECIPE], ids=["plain", "recipe"])
    def test_as_then_taken(self, large, tmp_path, policy):
        views = [0, 1, 2, 3, 4, 5]
        said, _ = foreseen(large, views, seconds=10, policy=policy)
        _, report = cache_views(
            str(tmp_path / "c"), large.index, policy, teacher(), TargetsConfig(k=4), views, caching=THREADS
        )
        # Loose: the machine may have other work in one of the two.
        assert report.seconds / 6 < said["machines"][0]["seconds"]["mid"] < 6 * report.seconds


class TestRefusals:
    def test_an_output_that_is_not_a_number(self, world):
        with pytest.raises(TeacherError, match="NaN"):
            foreseen(world, [0], model="tests.caching.test_forecast:broken")

    def test_labels_beyond_the_classes(self, world):
        with pytest.raises(ShardError, match="label out of range"):
            measure(world.index, VIEWS, teacher(num_classes=3), TargetsConfig(), [0])


class TestEstimate:
    def test_mean_and_percentiles(self):
        found = Estimate.of(np.random.default_rng(0).normal(10, 1, 10_000).tolist())
        assert vars(found) == pytest.approx({"low": 10 - 1.2816, "mid": 10, "high": 10 + 1.2816}, abs=0.05)

    def test_one_value_has_no_spread(self):
        assert Estimate.of([3.0]) == Estimate.exactly(3) == Estimate(3, 3, 3)

    def test_a_quotient_goes_from_least_to_most(self):
        found = Estimate(2, 4, 6).over(Estimate(0, 2, 4))
        assert found == Estimate(0.5, 2, float("inf"))
        assert found.json() == {"low": 0.5, "mid": 2, "high": None}
