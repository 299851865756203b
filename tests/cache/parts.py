"""Worlds that hold some of a world's shards, and children that die at any write, for tests of moving caches."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe.cache import Cache, Store, store
from kdpipe.cache.cache import record_digest
from kdpipe.shards import build_index
from kdpipe.verification import check_integrity
from tests import children
from tests.tiny import World, tree

# Whatever a cache's writers do to the disk goes through these.
WRITES = ((Path, "replace"), (os, "link"), (store, "fsync"), (Store, "remove"))
# A merge can't know which canaries a cache of all shards would have.
CANARIES = ("provenance.json", "labels.json", "store.json")


def part(world: World, folder: Path, *positions: int) -> World:
    """Some of a world's shards with an index of their own."""
    (folder / "shards").mkdir(parents=True)
    for i in positions:
        shutil.copy(world.folder / "shards" / world.index.shards[i].name, folder / "shards")
    return World(folder, build_index(str(folder / "shards"), folder / "index", block_size=16))


def targets_tree(folder: Path) -> dict[str, bytes]:
    """Every file of a cache but provenance and canaries."""
    return {name: data for name, data in tree(folder, CANARIES).items() if not name.startswith("canaries/")}


def part_digests(cache: Cache) -> dict[str, str]:
    """What a cache's parts are, whatever cache they are in."""
    return {name: record_digest(record) for name, record in cache.parts.items()}


def killed_at_write(call: int, work: Callable[..., Any], *args: Any) -> None:
    """In a child: do the work and die before its `call`-th write."""
    os.fsync = _nothing  # what is on disk matters to power cuts, not to SIGKILL
    deadly = children.dying_at(lambda: None, call)
    for owner, name in WRITES:
        setattr(owner, name, _after(deadly, getattr(owner, name)))
    work(*args)


def _nothing(*_: Any) -> None:
    return None


def survives_kills(every: int, before: Path | None, out: Path, work: Callable[..., Any], *args: Any) -> int:
    """Kill `work(out, *args)` at every n-th write, check what is left, repeat; how many writes there are.

    Args:
        every: n; the last write is always one of them.
        before: what `out` is a copy of at the start; None for nothing.
    """

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if before is not None:
            shutil.copytree(before, out)

    fresh()
    work(str(out), *args)
    undisturbed, call = tree(out), 1
    while True:
        fresh()
        code = children.run(killed_at_write, call, work, str(out), *args)
        assert kinds_of_damage(out) <= {"unexpected"}, call
        if code == 0:
            assert tree(out) == undisturbed
            return call - 1
        assert code == -signal.SIGKILL
        work(str(out), *args)
        assert tree(out) == undisturbed, call
        call += every


def _after(deadly: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        deadly()
        return function(*args, **kwargs)

    return wrapped


def kinds_of_damage(folder: Path) -> set[str]:
    """How the files are wrong of a cache that was interrupted: at most unexpected, nothing that is missing."""
    if not (folder / "commits/store.json").exists():
        return set()
    return {p["what"].split(":")[0] for p in check_integrity(Store(folder))[0]}
