"""A killed cache-teacher, resumed, leaves the bytes of one that was never disturbed."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import kdpipe.cache.commit as commit
import kdpipe.caching.backend as backend
import kdpipe.caching.task as task
from kdpipe.cache import Store
from kdpipe.cache.sealed import seal
from kdpipe.cache.store import PARTIAL
from kdpipe.shards import Index
from kdpipe.targets import TargetsConfig
from kdpipe.teacher import Teacher
from kdpipe.verification import check_integrity
from tests import children
from tests.caching.featured import TINY
from tests.tiny import RECIPE, World, make_cache, tree

# 20 instants, at least four in each phase: (phase, which call).
INSTANTS = [
    *[("render", n) for n in (1, 4, 7, 9)],
    *[("forward", n) for n in (1, 10, 29, 33)],
    *[("first array", n) for n in (1, 3)],
    *[("arrays written", n) for n in (1, 2, 3, 4)],
    *[("before rename", n) for n in (1, 2, 4)],
    *[("after rename", n) for n in (1, 3, 4)],
]


def caching(index: str, out: str) -> None:
    make_cache(World(Path(index).parent, Index.open(index)), out, views=(0, 1, "center"), config=RECIPE)


def killed(index: str, out: str, phase: str, call: int) -> None:
    """Run with one function replaced by one that kills."""
    if phase == "render":
        task.render_rows = children.dying_at(task.render_rows, call)
    elif phase == "forward":
        Teacher._forward = children.dying_at(Teacher._forward, call)
    elif phase == "first array":
        Store.read = dying_on(Store.read, lambda _, name, *most: name.endswith("/c/0/1/0/0"), call, after=False)
    elif phase == "arrays written":
        commit._record = children.dying_at(commit._record, call)
    else:
        is_record = lambda source, target: str(target).endswith(".tar.json")  # noqa: E731
        os.link = dying_on(os.link, is_record, call, after=phase == "after rename")
    caching(index, out)


def dying_on(function: Any, matches: Any, call: int, *, after: bool) -> Any:
    """Like `dying_at`, counting only the calls whose arguments match."""
    deadly = children.dying_at(function, call, after=after)
    return lambda *args, **kwargs: (deadly if matches(*args) else function)(*args, **kwargs)


def record_first(index: str, out: str) -> None:
    """The protocol the wrong way round, and a kill where it hurts."""

    def commit_task(cache: Any, segment: Any, shard: int, fields: Any, quality: Any) -> dict[str, Any]:
        names = [segment.chunk(f.name, shard) for f in segment.encoding.fields()]
        entries = {n: {"bytes": 1, "sha256": ""} for n in names}
        record = commit._record(cache, segment, cache.shards[shard], entries, quality)
        name = segment.commit(cache.shards[shard]["name"])
        cache.store.put_new(name, seal(record))
        if shard == 1:
            children.die()
        cache.store.remove(name)
        return commit.commit_task(cache, segment, shard, fields, quality)

    backend.commit_task = commit_task
    caching(index, out)


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "c.zarr"
    assert children.run(caching, world.index_path, str(out)) == 0
    return tree(out)


def test_two_undisturbed_runs_are_equal(world, undisturbed, tmp_path):
    assert children.run(caching, world.index_path, str(tmp_path / "c.zarr")) == 0
    assert tree(tmp_path / "c.zarr") == undisturbed


@pytest.mark.parametrize(("phase", "call"), INSTANTS)
def test_killed_and_resumed_equals_undisturbed(world, undisturbed, tmp_path, phase, call):
    out = tmp_path / "c.zarr"
    assert children.run(killed, world.index_path, str(out), phase, call) == -signal.SIGKILL
    if (out / "commits" / "store.json").exists():
        # What was committed before the kill is whole; what was not is at most called unexpected.
        problems, _ = check_integrity(Store(out))
        assert all(p["what"].startswith("unexpected") for p in problems)
    assert children.run(caching, world.index_path, str(out)) == 0
    assert tree(out) == undisturbed


def test_the_comparison_sees_a_record_written_first(world, undisturbed, tmp_path):
    out = tmp_path / "c.zarr"
    assert children.run(record_first, world.index_path, str(out)) == -signal.SIGKILL
    children.run(caching, world.index_path, str(out))
    assert tree(out) != undisturbed
    assert check_integrity(Store(out))[0]


@pytest.mark.parametrize("call", [1, 3, 5, 6])
def test_a_kill_while_the_store_is_created_is_made_good(world, undisturbed, tmp_path, call):
    out = tmp_path / "c.zarr"
    assert children.run(killed_creating, world.index_path, str(out), call) == -signal.SIGKILL
    assert children.run(caching, world.index_path, str(out)) == 0
    assert tree(out) == undisturbed


def killed_creating(index: str, out: str, call: int) -> None:
    Store.put_new = children.dying_at(Store.put_new, call)
    caching(index, out)


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "c.zarr"
    featured(world.index_path, str(out))
    return tree(out)


# Before the head's record, the calibration's, the first segment's; then a scale, and the array of a later task.
@pytest.mark.parametrize("call", [8, 10, 20, 35, 63])
def test_a_kill_while_parts_and_features_are_written_is_made_good(world, whole, tmp_path, call):
    out = tmp_path / "c.zarr"
    assert children.run(killed_putting, world.index_path, str(out), call) == -signal.SIGKILL
    if (out / "commits" / "store.json").exists():
        assert all(p["what"].startswith("unexpected") for p in check_integrity(Store(out))[0])
    assert children.run(featured, world.index_path, str(out)) == 0
    assert tree(out) == whole


def featured(index: str, out: str) -> None:
    world = World(Path(index).parent, Index.open(index))
    targets = TargetsConfig(k=4, pooled="int8", map="int8", map_rank=3)
    make_cache(world, out, views=(0, "center"), targets=targets, **TINY)


def killed_putting(index: str, out: str, call: int) -> None:
    Store.put_new = children.dying_at(Store.put_new, call)
    featured(index, out)


def test_leftovers_of_interrupted_writes_are_swept(world, undisturbed, tmp_path):
    out = tmp_path / "c.zarr"
    assert children.run(caching, world.index_path, str(out)) == 0
    left = out / "commits" / f"x.json.0123{PARTIAL}"
    left.write_bytes(b"half a rec")
    shutil.copy(left, out / f"zarr.0123{PARTIAL}")
    assert len(check_integrity(Store(out))[0]) == 2
    assert children.run(caching, world.index_path, str(out)) == 0
    assert tree(out) == undisturbed
