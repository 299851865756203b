"""Cached features against live ones: a wide scale and an empty basis excuse nothing, other rounding raises no alarm."""

import numpy as np
import pytest
import torch

from kdpipe.targets import Calibration, Feature
from kdpipe.verification.compare import ORTHONORMAL, Comparison, compare_feature, orthonormal_error

VIEWS, SIDE, WIDTH, RANK = 6, 3, 20, 5
PLACES = [f"view {i}" for i in range(VIEWS)]
MAP = Feature("map", (SIDE, SIDE, WIDTH), "int8")
POOLED = Feature("pooled", (WIDTH,), "int8")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_live(tokens: torch.Tensor) -> torch.Tensor:
    """Channels first, as networks give them."""
    return tokens.movedim(-1, 1)


def live(feature: Feature, seed: int = 0) -> torch.Tensor:
    return drawn(seed, VIEWS, *feature.shape)


def compared(feature: Feature, stored: dict, now: torch.Tensor, again: torch.Tensor, basis=None) -> Comparison:
    total = Comparison(feature.name, "bfloat16")
    compare_feature(total, feature, stored, (as_live(now), as_live(again)), basis, PLACES)
    return total


def rounded(tokens: torch.Tensor, scale: np.ndarray) -> np.ndarray:
    steps = np.rint(tokens.numpy() / scale.astype(np.float32)[..., None])
    return steps.clip(-127, 127).astype(np.int8)


@pytest.mark.parametrize("feature", [POOLED, MAP], ids=["pooled", "map"])
class TestScales:
    def test_one_that_covers_everything(self, feature):
        """Steps of 0 are within half of it."""
        x = live(feature)
        stored = feature.encode(x, None)
        stored[feature.name][:] = 0
        stored[f"{feature.name}_scale"][:] = np.float16(1000)
        assert compared(feature, stored, x, x).failures

    @pytest.mark.parametrize("times", [1.01, 1.5, 8, 127])
    def test_one_that_is_wider_than_it_has_to_be(self, feature, times):
        """With the steps that belong to it."""
        x = live(feature)
        stored = feature.encode(x, None)
        scale = (stored[f"{feature.name}_scale"] * times).astype(np.float16)
        stored |= {feature.name: rounded(x, scale), f"{feature.name}_scale": scale}
        total = compared(feature, stored, x, x)
        assert total.failures
        # By what the token's largest value would be.
        assert total.json()["difference"] > 0.5 * (times - 1)

    def test_one_that_is_not_finite(self, feature):
        x = live(feature)
        for wrong in (np.nan, np.inf):
            stored = feature.encode(x, None)
            stored[f"{feature.name}_scale"][0] = np.float16(wrong)
            assert compared(feature, stored, x, x).failures

    def test_the_next_one_is_rounding(self, feature):
        x = live(feature)
        stored = feature.encode(x, None)
        for way in (np.float16(0), np.float16(np.inf)):
            scale = np.nextafter(stored[f"{feature.name}_scale"], way)
            other = {feature.name: rounded(x, scale), f"{feature.name}_scale": scale}
            assert compared(feature, other, x, x).failures == []


def magnitudes() -> torch.Tensor:
    """Tokens of 0, tiny, usual and large ones side by side."""
    x = live(MAP)
    return (
        x
        * (10.0 ** drawn(1, VIEWS, SIDE, SIDE, 1).mul(4).round().clamp(-12, 5))
        * (drawn(2, VIEWS, SIDE, SIDE, 1) > -0.7)
    )


ALONE = {
    "zero": torch.zeros(VIEWS, SIDE, SIDE, WIDTH),
    **{f"{size:g}": live(MAP) * size for size in (1e-30, 1e-9, 1e-6, 1e-5, 1e-3, 1.0, 1e4, 1e6)},
    "sparse": live(MAP) * (drawn(3, VIEWS, SIDE, SIDE, WIDTH) > 2),
    "side by side": magnitudes(),
}


@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("name", ALONE)
def test_another_machines_rounding_is_no_alarm(name, dtype, rank):
    """Each run rounds by itself: the one that was cached, and both live ones."""
    x, feature = ALONE[name], Feature("map", (SIDE, SIDE, WIDTH), dtype, rank)
    basis = Calibration.fit(x.flatten(0, 2), rank)
    for noise in (0, 1e-6, 1e-3):
        largest = x.abs().amax(-1, keepdim=True)
        then, now, again = (x + noise * largest * drawn(seed, *x.shape).clamp(-2, 2) for seed in (4, 5, 6))
        assert compared(feature, feature.encode(then, basis), now, again, basis).failures == [], noise


class TestBasis:
    FEATURE = Feature("map", (SIDE, SIDE, WIDTH), "int8", RANK)

    @pytest.mark.parametrize("width", [4, WIDTH, 300])
    def test_one_that_was_fitted_is_orthonormal(self, width):
        for seed, scale in ((0, 1.0), (1, 1e-20), (2, 1e15)):
            fitted = Calibration.fit(drawn(seed, 50, width) * scale, min(64, width - 1))
            assert orthonormal_error(fitted) < ORTHONORMAL / 2
        assert orthonormal_error(Calibration.fit(torch.zeros(9, width), 3)) == 0

    @pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
    @pytest.mark.parametrize("wrong", ["zero", "long", "twice the same", "nan"])
    def test_one_that_is_not_holds_nothing(self, wrong, dtype):
        x = live(MAP)
        fitted = Calibration.fit(x.flatten(0, 2), RANK)
        rows = {
            "zero": torch.zeros(RANK, WIDTH),
            "long": fitted.components * 1.01,
            "twice the same": fitted.components[[0, 0, 1, 2, 3]],
            "nan": fitted.components * torch.nan,
        }[wrong]
        basis = Calibration(fitted.mean, fitted.std, rows, fitted.explained)
        feature = Feature("map", (SIDE, SIDE, WIDTH), dtype, RANK)
        assert compared(feature, feature.encode(x, basis), x, x, basis).failures
