"""The benches that need many processes, small."""

import pytest

from benchmarks.simulated import simulated
from benchmarks.workers import workers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_workers_against_raw_processes(tmp_path):
    found = workers(None, tmp_path, size=32, repeats=1, limit=128)
    assert (found["workers"], found["samples"], found["repeats"]) == (2, 128, 1)
    # However small the network: a tenth of what bare forwards reach would be a cluster that doesn't run side by side.
    assert 0.1 < found["ratio"]["median"] < 1.5
    ours, control = found["samples_per_second"]["median"], found["reference_samples_per_second"]["median"]
    assert ours / control == pytest.approx(found["ratio"]["median"])


def test_a_simulated_cluster(tmp_path):
    found = simulated(tmp_path, workers=9, tasks=54, seconds=1.0)
    assert 0.3 < found["busy"] < 1
    assert found["wall_seconds"] > 54 / 9 * 0.8
    # The scheduler has neither loaded torch nor opened the index, and keeps nothing of finished tasks.
    assert found["scheduler_mb_late"] < 150
    assert found["scheduler_mb_late"] - found["scheduler_mb_early"] < 20
