"""An index of millions: nothing of it is read, copied or sent that needn't be."""

import gc
import json
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.large_index import made_up_index
from kdpipe.loader import Loader, LoaderConfig
from kdpipe.shards import Index, build_index
from kdpipe.views import ViewsConfig
from tests.shards.making import write_shards

SAMPLES = 200_000


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return made_up_index(tmp_path_factory.mktemp("large") / "index", SAMPLES)


def measured(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """A result, the bytes that stay with it, and the most there were on the way."""
    gc.collect()
    tracemalloc.start()
    result = work()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, held, peak


def test_made_up_samples_are_like_real_ones(index: Index) -> None:
    assert (len(index), len(index.shards), index.block_size) == (SAMPLES, 20, 256)
    assert sum(shard.samples for shard in index.shards) == SAMPLES
    keys = index.keys(0, SAMPLES)
    assert len(set(keys)) == SAMPLES
    assert all(len(key) == 15 and key[0] == "n" and key[9] == "_" for key in keys)
    for block in (0, 39, 40, index.blocks - 1):
        rows, shard = index.rows(block), index.shards[int(index.block_shard[block])]
        assert index.shard_of(rows.start) == index.shard_of(rows.stop - 1) == shard
        ends = index.image_start[rows.start : rows.stop] + index.image_size[rows.start : rows.stop]
        assert index.block_start[block] < index.image_start[rows.start]
        assert ends.max() <= index.block_stop[block] < shard.size


def test_opening_costs_next_to_nothing(index: Index) -> None:
    began = time.process_time()
    again, held, peak = measured(lambda: Index.open(index.path))
    assert time.process_time() - began < 1
    assert again.key(SAMPLES - 1) == index.key(SAMPLES - 1)
    assert held < peak < 1 << 20


def test_a_loader_holds_no_rows_and_sends_none(index: Index) -> None:
    loader, held, peak = measured(lambda: Loader(index, ViewsConfig(), 224, 1024))
    assert held < peak < SAMPLES + 2**18  # a byte a sample, and the buffer of checking the files
    loader.order(0)
    assert len(pickle.dumps(loader)) < SAMPLES / 4
    mixing = Loader(index, ViewsConfig(mixup=0.8), 224, 1024)
    mixing.order(0)
    assert len(pickle.dumps(mixing)) < SAMPLES  # a name a block


def test_an_epochs_order_is_small_and_a_worker_keeps_its_share(index: Index) -> None:
    loader = Loader(index, ViewsConfig(), 224, 1024, loader=LoaderConfig(streams=64))
    order, held, peak = measured(lambda: loader.order(0))
    assert held < 12 * SAMPLES
    assert peak < 24 * SAMPLES
    share, kept, peak = measured(lambda: loader.share(0, 0, 0, 4))
    assert len(share.rows) == pytest.approx(SAMPLES / 4, rel=0.02)
    assert kept < 16 * len(share.rows) + 2**16
    assert peak < 36 * SAMPLES
    assert len(order.rows) == SAMPLES


def test_an_index_is_sent_by_its_place(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", 2, 12, size=16)
    index = build_index(tmp_path / "set", tmp_path / "index")
    data, part = pickle.dumps(index), pickle.dumps(index.limit(5))
    assert len(pickle.loads(part)) == 5
    received = pickle.loads(data)
    assert len(received) == 24
    assert received.block_first.tolist() == index.block_first.tolist()
    assert len(data) < 1000


@pytest.mark.slow
def test_fourteen_million_samples(tmp_path: Path) -> None:
    code = "import json, sys, pathlib; from benchmarks.index_open import index_open\n"
    code += "print(json.dumps(index_open(pathlib.Path(sys.argv[1]))))"
    # In a process of its own: making the index takes gigabytes.
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    report = json.loads(said.stdout)
    assert report["samples"] == 14_000_000
    assert report["seconds"]["max"] < 2
    assert report["resident_mb"]["max"] < 600
    assert report["added_mb"]["max"] < 10
    # Each of the readers has it all and counts for a fourth of it.
    assert report["resident_mb_each"] == pytest.approx(report["index_mb"], rel=0.02)
    assert report["shared_mb_each"] == pytest.approx(report["index_mb"] / report["readers"], rel=0.02)
    assert report["private_mb_each"] < 10
    assert report["epoch_order_mb"] < 400
    assert report["worker_mb"] < 200
