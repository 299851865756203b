"""A basis is checked by what it holds of live tokens, which no comparison of projections tells."""

import json
from dataclasses import replace

import pytest
import torch

from kdpipe.cache import Cache, Store
from kdpipe.targets import Calibration, Feature, TargetsConfig
from kdpipe.verification.bases import CalibrationTruth
from kdpipe.verification.replay import check_truth
from tests.caching.featured import TINY
from tests.stages.running import kdpipe
from tests.tiny import VIEWS, make_cache, teacher

WIDTH, RANK = 24, 4
FEATURE = Feature("map", (3, 3, WIDTH), "float16", RANK, "calibration-0")


def tokens(seed: int, views: int = 16) -> torch.Tensor:
    """Of falling variances, about a mean that is none."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, 3, 3, WIDTH, generator=generator) * 0.7 ** torch.arange(WIDTH) + 2


def told(calibration: Calibration, batches: list[torch.Tensor], feature=FEATURE, fitted: int = 64) -> CalibrationTruth:
    one = CalibrationTruth(feature, calibration, fitted)
    for x in batches:
        one.add(x, x)
    return one


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return Calibration.fit(tokens(0, 64).flatten(0, 2), RANK)


BATCHES = [tokens(seed) for seed in range(1, 6)]


def test_one_that_was_fitted_to_other_views_is_right(fitted):
    said = told(fitted, BATCHES).json()
    assert (said["ok"], said["checked"]) == (True, True)
    assert said["held"] == pytest.approx(fitted.explained, rel=0.1)
    # Statistics without a basis are checked by how far tokens lie.
    plain = Calibration.fit(tokens(0, 64).flatten(0, 2), None)
    said = told(plain, BATCHES, replace(FEATURE, rank=None)).json()
    assert said == {"explained": None, "held": None, "checked": True, "ok": True}


@pytest.mark.parametrize(("width", "views"), [(200, 16), (400, 40), (60, 500)])
def test_one_that_was_fitted_to_few_views_of_no_structure_is_no_lie(width, views):
    """It holds much less of others, as it must."""
    generator = torch.Generator().manual_seed(0)
    feature = Feature("map", (1, 1, width), "float16", 8, "calibration-0")
    seen, *others = (torch.randn(n, 1, 1, width, generator=generator) for n in (views, 64, 64, 64, 64))
    basis = Calibration.fit(seen.flatten(0, 2), 8)
    one = told(basis, others, feature, views)
    assert max(one.held) < basis.explained
    assert one.json()["ok"], one.json()


class TestWrong:
    def test_components_of_least_variance(self, fitted):
        whole = Calibration.fit(tokens(0, 64).flatten(0, 2), WIDTH - 1)
        wrong = replace(fitted, components=whole.components[-RANK:])
        assert "of the live variance at most, where 0.9" in told(wrong, BATCHES).json()["what"]

    def test_no_components(self, fitted):
        wrong = replace(fitted, components=torch.zeros(RANK, WIDTH))
        assert "not orthonormal: off by 1," in told(wrong, BATCHES[:1]).json()["what"]

    @pytest.mark.parametrize(("part", "times"), [("mean", 1e3), ("std", 1e-4), ("std", 1e3)])
    def test_statistics(self, fitted, part, times):
        wrong = replace(fitted, **{part: getattr(fitted, part) * times})
        assert "as far (squared) as its std gives" in told(wrong, BATCHES).json()["what"]
        plain = replace(wrong, components=None)
        assert not told(plain, BATCHES, replace(FEATURE, rank=None)).json()["ok"]

    def test_shapes(self, fitted):
        for name, found in (("components", torch.eye(WIDTH)[:3]), ("mean", torch.zeros(3)), ("components", None)):
            said = told(replace(fitted, **{name: found}), []).json()
            assert said["what"].startswith(f"its {name} is of shape ")


class TestNotJudged:
    def test_few_batches(self, fitted):
        wrong = replace(fitted, std=fitted.std * 1e6)
        said = told(wrong, BATCHES[:3]).json()
        assert (said["ok"], said["checked"]) == (True, False)
        assert told(wrong, BATCHES, fitted=3).json()["checked"] is False

    @pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e20])
    def test_a_map_that_never_changes(self, value):
        x = torch.full((16, 3, 3, WIDTH), value)
        basis = Calibration.fit(x.flatten(0, 2), RANK)
        one = CalibrationTruth(FEATURE, basis, 64)
        for seed in range(5):
            noise = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(seed)) * 1e-6
            one.add(x * (1 + noise[0]), x * (1 + noise[1]))
        assert (one.json()["ok"], one.json()["checked"]) == (True, False)

    def test_batches_of_one_class_each(self, fitted):
        """Some have nothing in common with what most of the variance is of."""
        odd = torch.zeros(16, 3, 3, WIDTH) + 2 + 0.3 * (torch.arange(WIDTH) > WIDTH - 3)
        assert told(fitted, [odd * (1 + 1e-3 * i) for i in range(4)] + BATCHES[:1]).json()["ok"]


class TestVerify:
    TARGETS = TargetsConfig(kind="none", map="int8", map_rank=1)

    @pytest.mark.parametrize(("wrong", "said"), [("zero", "not orthonormal"), ("least", "of the live variance")])
    def test_a_cache_on_a_wrong_basis(self, world, tmp_path, monkeypatch, wrong, said):
        """All of it made and committed on that basis, its errors recorded."""
        fit = Calibration.fit

        def wrongly(x: torch.Tensor, rank: int | None) -> Calibration:
            right, whole = fit(x, rank), fit(x, x.shape[1])
            rows = torch.zeros_like(right.components) if wrong == "zero" else whole.components[-rank:]
            return replace(right, components=rows)

        monkeypatch.setattr(Calibration, "fit", wrongly)
        make_cache(world, tmp_path / "c", views=(0, 1), targets=self.TARGETS, **TINY)
        cache = Cache(Store(tmp_path / "c"))
        report = check_truth(cache, world.index, VIEWS, teacher(**TINY), cache.segments)
        assert not report["ok"]
        [(name, known)] = report["calibrations"].items()
        assert said in known["what"]
        assert kdpipe("verify", tmp_path / "c", "--integrity-only").code == 0
        result = kdpipe("verify", tmp_path / "c", "--trust", "tests")
        assert result.code == 1
        assert f"  {name}: {known['what']}: FAILED\n" in result.out

    def test_a_cache_on_the_right_one(self, world, tmp_path):
        # Also of views that have come later, and read with other numerics.
        make_cache(world, tmp_path / "c", views=(0,), targets=self.TARGETS, **TINY)
        make_cache(world, tmp_path / "c", views=("center",), targets=self.TARGETS, amp_dtype="bfloat16", **TINY)
        result = kdpipe("verify", tmp_path / "c", "--trust", "tests", "--json")
        assert result.code == 0, result.out
        [known] = json.loads(result.out)["truth"]["calibrations"].values()
        assert known["checked"]
        assert known["held"] == pytest.approx(known["explained"], rel=0.2)
        said = kdpipe("verify", tmp_path / "c", "--trust", "tests").out
        assert " % of the live variance, " in said
        assert "too few" not in said
        assert (
            "too few views to check it: ok\n"
            in kdpipe("verify", tmp_path / "c", "--trust", "tests", "--samples", 8).out
        )
