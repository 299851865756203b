"""Features from the teacher to committed arrays: exact or within a step, on a basis, beside the logits or later."""

import numpy as np
import pytest
import torch
import zarr

import kdpipe.caching.modules as parts
from kdpipe.cache import ArrayReader, Cache, read_canaries
from kdpipe.cache.modules import read_calibration, read_part
from kdpipe.caching import CachingConfig, cache_views
from kdpipe.errors import CacheError, TargetsError, TeacherError
from kdpipe.targets import Calibration, Encoding, TargetsConfig
from kdpipe.targets.quality import quality
from kdpipe.teacher import load_head, load_tail
from kdpipe.verification import check_integrity
from tests.caching.featured import TINY, giving, live, settings, stored
from tests.teacher.networks import network
from tests.tiny import RECIPE, VIEWS, make_cache, teacher, tree

EXACT = TargetsConfig(kind="dense", dtype="float32", pooled="float32", map="float32")
BOTH = ("pooled", "map")


@pytest.fixture(scope="module")
def slak(tmp_path_factory) -> dict[str, object]:
    return settings("slak", tmp_path_factory.mktemp("slak"))


@pytest.mark.parametrize("name", ["convnext", "slak", "swin", "resnet"])
def test_float32_equals_the_teachers_output(world, tmp_path, name):
    said = settings(name, tmp_path)
    cache = make_cache(world, tmp_path / "c", views=(0, "center"), targets=EXACT, **said)
    one = giving(*BOTH, **said)
    for view in (0, "center"):
        rows, now = stored(cache, view), live(world, view, VIEWS, one)
        assert torch.equal(rows["logits"], now.logits)
        assert torch.equal(rows["pooled"], now.pooled)
        assert torch.equal(rows["map"], now.map.permute(0, 2, 3, 1))
    said = cache.quality(cache.segments[0])
    assert (said.pooled_error, said.map_error) == (0, 0)
    assert check_integrity(cache.store)[0] == []


def test_of_mixed_and_erased_views_too(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(3,), targets=EXACT, config=RECIPE, **TINY)
    rows, now = stored(cache, 3), live(world, 3, RECIPE, giving(*BOTH, **TINY))
    assert torch.equal(rows["map"], now.map.permute(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_lossy_dtypes_are_off_by_half_a_step(world, tmp_path, dtype):
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=TargetsConfig(k=4, pooled=dtype, map=dtype), **TINY)
    rows, now = stored(cache, 0), live(world, 0, VIEWS, giving(*BOTH, **TINY))
    tokens = {"pooled": now.pooled, "map": now.map.permute(0, 2, 3, 1)}
    for name, x in tokens.items():
        if dtype == "int8":
            scale = rows[f"{name}_scale"].float()[..., None]
            # Each token has its own, as small as it can be.
            torch.testing.assert_close(scale[..., 0], x.abs().amax(-1) / 127, rtol=2e-3, atol=1e-7)
            assert ((rows[name].float() * scale - x).abs() <= scale / 2 * (1 + 1e-5)).all()
        else:
            assert torch.equal(rows[name], x.half())
    back = cache.segments[0].encoding.decode(rows, None)
    errors = ((back.map - now.map).flatten(1).square().sum(1) / now.map.flatten(1).square().sum(1)).mean()
    kept = cache.quality(cache.segments[0])
    assert kept.map_error / kept.views == pytest.approx(float(errors), rel=1e-3)
    assert 0 < kept.pooled_error / kept.views < (1e-3 if dtype == "int8" else 1e-6)


class TestBasis:
    TARGETS = TargetsConfig(kind="none", map="float32", map_rank=3)

    def test_it_is_that_of_the_first_views(self, world, tmp_path):
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=self.TARGETS, **TINY)
        feature = cache.segments[0].encoding.map
        _, about = read_part(cache, feature.calibration)
        basis = read_calibration(cache, cache.segments[0].encoding)
        now = live(world, 0, VIEWS, giving("map", **TINY)).map
        tokens = now.permute(0, 2, 3, 1).reshape(-1, now.shape[1])
        # All 94 views are within the first 512.
        assert (about["views"], about["tokens"], about["rank"]) == (94, len(tokens), 3)
        values = torch.linalg.svdvals((tokens - tokens.mean(0)).double())
        share = float((values[:3] ** 2).sum() / (values**2).sum())
        assert about["explained"] == pytest.approx(share, rel=1e-6)
        torch.testing.assert_close(basis.mean, tokens.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(basis.std, tokens.std(0), rtol=1e-4, atol=1e-5)
        assert torch.allclose(basis.components @ basis.components.T, torch.eye(3), atol=1e-5)
        rows = stored(cache, 0)
        assert rows["map"].shape == (94, *now.shape[2:], 3)
        back = cache.segments[0].encoding.decode(rows, basis).map.permute(0, 2, 3, 1).reshape(tokens.shape)
        lost = float(((back - tokens) ** 2).sum() / ((tokens - tokens.mean(0)) ** 2).sum())
        assert lost == pytest.approx(1 - share, rel=1e-3)
        kept = cache.quality(cache.segments[0])
        assert (kept.kl, kept.retained_mass, kept.pooled_error) == (None, None, None)
        assert 0 < kept.map_error / kept.views < 1 - share  # against the values, not against their variance

    def test_few_values_are_held_at_a_time(self, world, tmp_path, monkeypatch):
        shape = teacher(**TINY).shapes(["map"])["map"]
        monkeypatch.setattr(parts, "_VALUES", 20 * shape[0] * shape[1] * shape[2])
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=self.TARGETS, **TINY)
        _, about = read_part(cache, cache.segments[0].encoding.map.calibration)
        assert 16 <= about["views"] <= 32

    @pytest.mark.parametrize("rank", [5, 64])
    def test_a_rank_that_makes_the_map_no_smaller_is_refused(self, world, tmp_path, rank):
        targets = TargetsConfig(kind="none", map="float16", map_rank=rank)
        message = rf"^targets\.map_rank: .*; found {rank}; allowed: below 5, the width .*\. Leave it out"
        with pytest.raises(TargetsError, match=message):
            make_cache(world, tmp_path / "c", views=(0,), targets=targets, **TINY)
        assert not (tmp_path / "c").exists()
        assert Encoding.of(targets.model_copy(update={"map_rank": 4}), 10, {"map": (4, 4, 5)}).map.rank == 4

    def test_without_one_statistics_are_kept_alone(self, world, tmp_path):
        targets = TargetsConfig(kind="none", map="float16")
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=targets, **TINY)
        assert cache.segments[0].encoding.map.rank is None
        assert read_calibration(cache, cache.segments[0].encoding).components is None


class TestLater:
    """Views and features that come after others."""

    MAP = TargetsConfig(kind="none", map="int8", map_rank=3)

    def test_features_beside_logits_that_are_there(self, world, tmp_path):
        make_cache(world, tmp_path / "c", views=(0, 1), targets=TargetsConfig(k=3), **TINY)
        before = tree(tmp_path / "c")
        cache = make_cache(world, tmp_path / "c", views=(0, 1), targets=self.MAP, **TINY)
        now = tree(tmp_path / "c")
        assert [s.name for s in cache.segments] == ["000-top3-float16-v0-2", "001-map-int8-r3-v0-2"]
        assert before.items() <= now.items()
        alone = make_cache(world, tmp_path / "d", views=(0, 1), targets=self.MAP, **TINY)
        rows, others = stored(cache, 1, number=1), stored(alone, 1)
        assert all(torch.equal(rows[name], others[name]) for name in others)
        assert check_integrity(cache.store)[0] == []

    def test_more_views_have_the_same_basis(self, world, tmp_path):
        first = make_cache(world, tmp_path / "c", views=(0,), targets=self.MAP, **TINY)
        cache = make_cache(world, tmp_path / "c", views=(0, 1, "center"), targets=self.MAP, **TINY)
        assert list(cache.parts) == list(first.parts)
        assert len({s.encoding for s in cache.segments}) == 1
        # Also beside logits: statistics are the map's, whatever else is kept.
        both = TargetsConfig(k=2, map="float16", map_rank=3)
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=both, **TINY)
        assert {s.encoding.map.calibration for s in cache.segments} == set(first.parts)
        other = TargetsConfig(kind="none", map="int8", map_rank=2)
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=other, **TINY)
        assert len(cache.parts) == 2

    def test_a_lost_calibration_is_made_again(self, world, tmp_path):
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=self.MAP, **TINY)
        whole, [name] = tree(tmp_path / "c"), cache.parts
        for file in (f"commits/{name}.json", f"parts/{name}.safetensors"):
            (tmp_path / "c" / file).unlink()
        with pytest.raises(CacheError, match=f"the cache has no part {name}"):
            read_calibration(Cache(cache.store), cache.segments[0].encoding)
        assert [p["where"] for p in check_integrity(cache.store)[0]] == [f"commits/{name}.json"]
        make_cache(world, tmp_path / "c", views=(0,), targets=self.MAP, **TINY)
        assert tree(tmp_path / "c") == whole

    def test_the_tail_may_come_later(self, world, tmp_path, slak):
        make_cache(world, tmp_path / "c", views=(0,), targets=self.MAP, **slak)
        targets = self.MAP.model_copy(update={"tail": True})
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=targets, **slak)
        assert list(cache.parts)[1:] == ["tail"]
        assert len(cache.segments) == 1


class TestParts:
    @pytest.mark.parametrize("form", ["merged", "eager"])
    def test_head_and_tail_are_the_plain_networks(self, world, tmp_path, slak, form):
        targets = TargetsConfig(kind="none", pooled="float32", map="float32", tail=True)
        cache = make_cache(world, tmp_path / "c", views=(0,), targets=targets, form=form, **slak)
        weights, plain = cache.identity["teacher"]["weights"], network("slak").module
        stored_head, about = read_part(cache, "head")
        assert about == {"teacher": weights}
        assert torch.equal(stored_head["weight"], plain.get_classifier().weight)
        canaries = len(read_canaries(cache))
        assert len(stored_head["probe_inputs"]) == canaries == 54
        stored_tail, about = read_part(cache, "tail")
        tail = load_tail(stored_tail, about, "here", weights)
        assert tail.out_shape == stored_tail["probe_outputs"].shape[1:]
        ours = {k.removeprefix("tail.stage.") for k in stored_tail if k.startswith("tail.stage.")}
        assert ours == plain.get_submodule(about["stage"]).state_dict().keys()
        # What the head makes of cached pooled features is what the teacher said.
        rows, now = stored(cache, 0), live(world, 0, VIEWS, teacher(form=form, **slak))
        torch.testing.assert_close(load_head(stored_head, "here")(rows["pooled"]), now.logits, rtol=1e-5, atol=1e-5)

    def test_missing_features_are_refused_before_a_cache_is_created(self, world, tmp_path):
        two = {"model": None, "mean": None, "std": None, "members": [TINY, TINY]}
        for targets, said, message in [
            (TargetsConfig(pooled="float16"), {}, "no forward_features"),
            (TargetsConfig(pooled="float16"), TINY | {"model_kwargs": {"kind": "bent"}}, "aren't a linear function"),
            (TargetsConfig(map="float16", tail=True), TINY, "no last stage that can be taken out"),
            (TargetsConfig(tail=True), two, r"\. Leave out targets\.tail$"),
            (TargetsConfig(map="int8"), two, r"\. Leave out targets\.map$"),
        ]:
            with pytest.raises(TeacherError, match=message):
                make_cache(world, tmp_path / "c", targets=targets, **said)
            assert not (tmp_path / "c").exists()


def test_any_zarr_reader_reads_it(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpipe.cache.layout.CHUNK_BYTES", 2**9)
    cache = make_cache(world, tmp_path / "c", views=(0, 1), targets=TargetsConfig(kind="none", map="int8"), **TINY)
    group, reader, segment = zarr.open_group(str(tmp_path / "c"), mode="r"), ArrayReader(cache), cache.segments[0]
    array, scale = (group[segment.array(name)] for name in ("map", "map_scale"))
    assert array.metadata.dimension_names == ("view", "shard", "row", "y", "x", "channel")
    assert scale.metadata.dimension_names == ("view", "shard", "row", "y", "x")
    assert array.chunks[2] < 16 == scale.chunks[2]
    assert (array[:, 0, 40:] == -128).all()
    assert (array[:, 0, :40] != -128).all()
    assert np.isinf(scale[:, 1, 33:]).all()
    for position, shard in enumerate(cache.shards):
        for start, stop in [(0, shard["samples"]), (3, 9), (15, 17)]:
            ours = reader.read(segment, shard["name"], 1, start, stop)
            assert np.array_equal(ours["map"], array[1, position, start:stop])
            assert np.array_equal(ours["map_scale"], scale[1, position, start:stop])


def test_views_of_large_features_take_more_segments(world, tmp_path, monkeypatch):
    shape = teacher(**TINY).shapes(["map"])["map"]
    monkeypatch.setattr("kdpipe.caching.segments._TASK_BYTES", 2 * 48 * 4 * int(np.prod(shape)))
    targets = TargetsConfig(kind="none", map="float32")
    cache = make_cache(world, tmp_path / "c", views=range(5), targets=targets, **TINY)
    assert [s.views for s in cache.segments] == [(0, 1), (2, 3), (4,)]


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("nan", {"map": "int8"}, r"NaN or infinity.*amp-dtype|NaN or infinity"),
        (
            "large",
            {"map": "float16"},
            r"shard-000\d.tar key .* view 0: a value of the final map is too large.*--feature-map float32",
        ),
        ("large", {"pooled": "float16"}, r"a pooled feature is too large for the cache's dtype.*--pooled float32"),
    ],
)
def test_values_that_cannot_be_kept_are_named(world, tmp_path, kind, targets, message):
    who = teacher(**TINY | {"model_kwargs": {"kind": kind}})
    try:
        _, report = cache_views(
            str(tmp_path / "c"),
            world.index,
            VIEWS,
            who,
            TargetsConfig(kind="dense", dtype="float32", **targets),
            [0],
            caching=CachingConfig(render_threads=1),
        )
        error = report.failed[0].error
    except TeacherError as e:
        error = e
    assert error is not None
    with pytest.raises(TeacherError, match=message):
        raise error


def test_of_int8_large_values_are_no_trouble(world, tmp_path):
    targets = TargetsConfig(kind="none", map="int8", pooled="int8")
    said = TINY | {"model_kwargs": {"kind": "large"}}
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=targets, **said)
    assert cache.quality(cache.segments[0]).means()["map_error"] < 1e-3


def test_quality_of_what_is_kept_alone():
    one = giving(*BOTH, **TINY)
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)
    said, shapes = one(images), one.shapes(BOTH)
    labels = torch.full((70,), -1)
    basis = Calibration.fit(said.map.movedim(1, -1).flatten(0, 2), 4)
    for config, there in [
        (TargetsConfig(kind="none", pooled="int8"), {"pooled_error"}),
        (TargetsConfig(k=2, map="int8", map_rank=4), {"map_error", "kl", "retained_mass"}),
    ]:
        encoding = Encoding.of(config, 10, shapes)
        found = quality(said, labels, encoding, encoding.encode(said, labels, basis), basis)
        assert set(found.json()) - {"views", "labelled", "top1", "top5"} == there
        assert {name for name, value in found.means().items() if value is None} >= {"teacher_top1"}
