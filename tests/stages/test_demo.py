"""The demo keeps its word, and its gain comes from the targets being those of the same samples."""

import numpy as np
import pytest

from kdpipe.cache import CacheReader
from kdpipe_stages.demo_run import Demo, interval


def test_interval_is_students_t():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(2.4841, abs=1e-4)  # t(.975, 2) / sqrt(3)
    assert interval([5.0]) == (5.0, float("inf"))


@pytest.mark.slow
def test_the_cache_helps_and_shuffled_targets_do_not(tmp_path, monkeypatch):
    run = Demo(tmp_path, quiet=True)
    run.shards()
    assert run.teacher() > 0.96
    assert run.cache()["bytes_per_view"] < 100
    student, baseline = run.student(0), run.baseline(0)
    assert student > baseline + 0.01
    read = CacheReader.read

    def of_other_samples(self, shard, view, start, stop):
        order = np.random.default_rng(start).permutation(stop - start)
        return {name: rows[order] for name, rows in read(self, shard, view, start, stop).items()}

    monkeypatch.setattr(CacheReader, "read", of_other_samples)
    assert run.student(0, name="shuffled") < baseline
