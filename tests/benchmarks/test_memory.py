"""Memory of caching: a run of many tasks needs no more than a run of one."""

import pytest

from benchmarks.memory import memory


@pytest.mark.slow
def test_memory_does_not_grow_with_tasks(tmp_path):
    report = memory(tmp_path, tasks=40, samples=16, size=64, repeats=1)
    assert report["tasks"] == 40
    assert report["ratio"] == report["peak_mb_many"]["median"] / report["peak_mb_one"]["median"]
    assert 0.9 < report["ratio"] < 1.1
    assert report["bound"].endswith("held")


@pytest.mark.slow
def test_a_run_that_fails_is_no_figure(tmp_path):
    with pytest.raises(RuntimeError, match=r"input_size|input-size"):
        memory(tmp_path, tasks=1, samples=2, size=0, repeats=1)
