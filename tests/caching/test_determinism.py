"""A teacher must be a function of its input: refused before a run, found in old caches, declared where it is not."""

import json

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.caching.cluster import Cluster
from kdpipe.caching.determinism import FLOOR, compute_dtype, rounding, run_again
from kdpipe.errors import TeacherError
from kdpipe.shards import Index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import NOT_A_FUNCTION, TeacherConfig
from kdpipe.verification import check_truth
from kdpipe.verification.averages import Averages
from kdpipe.verification.compare import SLACK
from kdpipe.verification.replay import join
from tests.caching import featured
from tests.caching.stochastic import KINDS, change, old_cache, roll, settings
from tests.stages.running import kdpipe, refused
from tests.tiny import CLASSES, RECIPE, SETTINGS, SIZE, VIEWS, make_cache, teacher

DENSE, TOP = TargetsConfig(kind="dense", dtype="float32"), TargetsConfig(k=4)
DECLARED = CachingConfig(render_threads=1, allow_nondeterministic=True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def flags(kind: str) -> list[object]:
    """The same teacher for the command."""
    said = {**SETTINGS, **settings(kind)}
    return [word for key, value in said.items() for word in ("--set", f"teacher.{key}={json.dumps(value)}")]


def truth(world, cache, kind, **changes):
    one = teacher(**settings(kind), **changes)
    return check_truth(cache, world.index, VIEWS, one, cache.segments, samples=94)


@pytest.mark.parametrize("kind", KINDS)
class TestRefused:
    def test_before_the_run(self, world, tmp_path, kind):
        out = tmp_path / "c"
        args = ("--index", world.index_path, *flags(kind))
        for command in (("cache-teacher", *args, "--out", out), ("plan", *args)):
            line = refused(*command)
            for part in (NOT_A_FUNCTION, "rounding in float32", "dropout", "batch norm", "--allow-nondeterministic"):
                assert part in line
        assert not out.exists()

    @pytest.mark.parametrize("targets", [DENSE, TOP], ids=["dense", "top"])
    @pytest.mark.parametrize("rolled", [False, True], ids=["as made", "rolled"])
    def test_in_an_old_cache(self, world, tmp_path, kind, targets, rolled):
        cache = old_cache(world, tmp_path / "c", kind, targets)
        found = truth(world, change(cache, roll) if rolled else cache, kind)
        assert not found["ok"]
        assert NOT_A_FUNCTION in found["reasons"][0]
        assert found["failures"] == []
        assert found["control"] > found["bound"]
        assert found["tolerance"] == pytest.approx(FLOOR + SLACK * found["bound"])


def test_verify_names_the_reason(world, tmp_path):
    old_cache(world, tmp_path / "c", "dropout", TOP)
    result = kdpipe("verify", tmp_path / "c", "--trust", "tests.caching")
    assert result.code == 1
    assert f"truth: 188 views run again: FAILED\n  logits: {NOT_A_FUNCTION}: live against live" in result.out
    report = json.loads(kdpipe("verify", tmp_path / "c", "--trust", "tests.caching", "--json").out)
    assert not report["truth"]["ok"]
    assert len(report["truth"]["reasons"]) == 1


def test_in_an_existing_cache_only_where_there_is_something_to_do(world, tmp_path):
    old_cache(world, tmp_path / "c", "noise", TOP)

    def again(views):
        who = teacher(**settings("noise"))
        return cache_views(str(tmp_path / "c"), world.index, VIEWS, who, TOP, views)[1]

    assert again((0, "center")).tasks == 0
    with pytest.raises(TeacherError, match=NOT_A_FUNCTION):
        again((0, 1, "center"))


@pytest.mark.filterwarnings("ignore")
def test_on_a_workers_teacher(world, tmp_path):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        who = Cluster(client, TeacherConfig.model_validate(SETTINGS | settings("dropout")), None)
        with pytest.raises(TeacherError, match=NOT_A_FUNCTION):
            cache_views(
                str(tmp_path / "c"), world.index, RECIPE, who, TOP, [0], caching=CachingConfig(render_threads=1)
            )
        assert not (tmp_path / "c").exists()
        _, report = cache_views(str(tmp_path / "c"), world.index, RECIPE, who, TOP, [0], caching=DECLARED)
    assert (report.tasks, report.failed) == (3, [])


@pytest.mark.parametrize("targets", [TOP, TargetsConfig(k=4, pooled="float16")], ids=["merged", "with features"])
def test_where_another_form_is_compared_first(world, tmp_path, targets):
    """A network with dropout differs from its merged form, and from itself by way of its features."""
    kind = "dropout, merged" if targets is TOP else "dropout, features"
    with pytest.raises(TeacherError, match=rf"{NOT_A_FUNCTION}: run twice.*dropout left on.*teacher\.form=eager"):
        make_cache(world, tmp_path / "c", targets=targets, **settings(kind))
    assert not (tmp_path / "c").exists()


class TestRunAgain:
    """Every view at another place, beside other rows, and back in the order in which it came."""

    @pytest.mark.parametrize("rows", [1, 3, 7, 8, 19])
    @pytest.mark.parametrize("batch", [1, 2, 5, 8])
    def test_the_outputs_are_those_of_the_views(self, rows, batch):
        images = torch.randint(0, 256, (rows, SIZE, SIZE, 3), dtype=torch.uint8).numpy()
        one = teacher(batch_size=batch)
        torch.testing.assert_close(run_again(one, images, None).logits, one(images).logits)

    def test_the_batches_are_others(self, monkeypatch):
        images = torch.randint(0, 256, (6, SIZE, SIZE, 3), dtype=torch.uint8)
        one, seen = teacher(batch_size=4), []
        forward = one._forward
        monkeypatch.setattr(one, "_forward", lambda x, erased: seen.append(x.clone()) or forward(x, erased))
        run_again(one, images.numpy(), None)
        assert [tuple(x.shape) for x in seen] == [(4, SIZE, SIZE, 3)] * 3
        for at, batch in enumerate(seen):
            pair = images[2 * at : 2 * at + 2]
            assert torch.equal(batch[2:], pair.flip(0))
            assert not any(torch.equal(other, image) for other in batch[:2] for image in images)


def test_the_bound_is_that_of_the_coarsest_dtype():
    def numerics(amp, tf32=False):
        return {"amp_dtype": amp, "tf32": tf32}

    assert compute_dtype(numerics("float32")) == "float32"
    assert compute_dtype(numerics("float32", tf32=True)) == "tf32"
    assert compute_dtype(numerics("bfloat16", tf32=True)) == "bfloat16"
    assert rounding("float32") < 1e-4 < rounding("tf32") == rounding("float16") < rounding("bfloat16") < 0.1


@pytest.mark.parametrize("amp_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet", "convnext", "swin"])
def test_sound_networks_pass(world, tmp_path, name, amp_dtype):
    """With features too; and one wrong logit among thousands is found."""
    said = featured.settings(name, tmp_path) | {"amp_dtype": amp_dtype}
    targets = TargetsConfig(kind="dense", dtype="float32", pooled="float16", map="int8")
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=targets, **said)
    one = teacher(**said)
    found = check_truth(cache, world.index, VIEWS, one, cache.segments, samples=94)
    assert (found["ok"], found["reasons"], found["dtype"]) == (True, [], amp_dtype)
    spread = cache_spread(cache)

    def one_wrong(rows):
        rows["logits"][0, 5, 2] += spread

    found = check_truth(change(cache, one_wrong), world.index, VIEWS, one, cache.segments, samples=94)
    assert (found["ok"], found["reasons"]) == (False, [])
    assert len(found["failures"]) == 3


def cache_spread(cache) -> float:
    [segment], shard = cache.segments, cache.shards[0]
    return float(ArrayReader(cache).read(segment, shard["name"], 0, 0, shard["samples"])["logits"].std())


def test_a_class_named_twice_is_found(world, tmp_path):
    """Its log-probability is right; another class is missing."""

    def twice(rows):
        rows["index"][..., 1], rows["log_prob"][..., 1] = rows["index"][..., 0], rows["log_prob"][..., 0]

    def nowhere(rows):
        rows["index"][..., 3] = CLASSES

    for name, what in (("twice", twice), ("nowhere", nowhere)):
        cache = change(make_cache(world, tmp_path / name, targets=TOP), what)
        found = check_truth(cache, world.index, VIEWS, teacher(), cache.segments, samples=94)
        assert found["failures"], name


class TestDeclared:
    """`--allow-nondeterministic`."""

    def cached(self, world, out, kind, targets, **changes):
        who = teacher(**settings(kind), **changes)
        return cache_views(str(out), world.index, VIEWS, who, targets, (0, "center"), caching=DECLARED)[0]

    @pytest.mark.parametrize("targets", [DENSE, TOP], ids=["dense", "top"])
    @pytest.mark.parametrize("kind", ["right", *KINDS])
    def test_an_honest_cache_is_ok_and_a_rolled_one_is_not(self, world, tmp_path, kind, targets):
        cache = self.cached(world, tmp_path / "c", kind, targets)
        assert cache.identity["nondeterministic"] is True
        found = truth(world, cache, kind)
        assert (found["ok"], found["reasons"], found["failures"]) == (True, [], [])
        assert "teacher declared nondeterministic: only averages over" in found["remarks"][0]
        assert found["bound"] is None
        found = truth(world, change(cache, roll), kind)
        assert not found["ok"]

    def test_the_flag_and_the_verdict(self, world, tmp_path):
        args = ("--index", world.index_path, *flags("dropout"), "--views", "0,center", "--k", 4)
        views = [
            f
            for key, value in VIEWS.model_dump(mode="json", exclude_defaults=True).items()
            for f in ("--set", f"views.{key}={value}")
        ]
        made = kdpipe("cache-teacher", *args, *views, "--allow-nondeterministic", "--out", tmp_path / "c")
        assert made.code == 0, made.err
        result = kdpipe("verify", tmp_path / "c", "--trust", "tests.caching")
        assert result.code == 0, result.out
        assert "teacher declared nondeterministic: only averages over" in result.out
        change(Cache(Store(tmp_path / "c")), roll)
        assert kdpipe("verify", tmp_path / "c", "--trust", "tests.caching").code == 1
        # The same cache without the flag is another one.
        assert "nondeterministic" in refused("cache-teacher", *args, *views, "--views", "0:2", "--out", tmp_path / "c")

    def test_too_few_batches_are_no_proof(self, world, tmp_path):
        cache = self.cached(world, tmp_path / "c", "dropout", TOP, batch_size=16)
        few = Index.open(world.index.path).limit(16)
        one = teacher(**settings("dropout"), batch_size=16)
        found = check_truth(cache, few, VIEWS, one, cache.segments)
        assert not found["ok"]
        assert "2 batches are too few" in found["reasons"][0]

    def test_an_ordinary_identity_has_no_such_field(self, cache_path):
        assert "nondeterministic" not in Cache(Store(cache_path)).identity


def test_averages():
    honest = [1.0, 1.2, 0.9] * 10, [1.1, 0.9, 1.2] * 10
    assert Averages(*honest).what() is None
    assert "standard errors beyond chance" in Averages([1.2] * 30, [1.0] * 30).what()
    assert Averages([1.0] * 30, [1.2] * 30).what() is None
    assert "inf" in Averages([float("nan")] * 30, [1.0] * 30).what()
    assert "too few" in Averages([1.0] * 11, [1.0] * 11).what()
    draws = np.random.default_rng(0).gamma(2.0, size=(400, 2, 30))
    assert sum(Averages(*draw.tolist()).what() is not None for draw in draws) <= 2


def test_several_checks_as_one(world, cache_path):
    cache = Cache(Store(cache_path))
    found = check_truth(cache, world.index, VIEWS, teacher(), cache.segments, samples=8)
    both = join([found, found])
    assert both["bound"] == found["bound"] > 0
    assert both["dtype"] == "float32"
    assert both["reasons"] == both["remarks"] == []
