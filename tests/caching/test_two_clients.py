"""Two clients that begin one cache at the same moment, stepped through the store's operations in seeded orders.

Whatever the order, what opens at the end is all of one client: its identity, and its teacher's values under it.
"""

import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import numpy as np
import pytest

import kdpipe._util.files as files
import kdpipe.cache.lease as lease
import kdpipe.cache.locks as locks
import kdpipe.cache.store as stores
import kdpipe.caching.backend as backend
import kdpipe.caching.run as run
from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.caching import cache_views
from kdpipe.caching.backend import InProcess, TeacherSpec
from kdpipe.errors import CacheError, IdentityError, KdpipeError
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.verification import check_integrity
from kdpipe.views.canaries import Canary
from tests.tiny import CLASSES, VIEWS, World, make_world

SEEDS = range(150)
OPERATIONS = ("read_if", "exists", "size", "files", "put", "remove", "_create")


class Turns:
    """Lets one of several threads go on at a time, from one operation to its next, in a seeded order."""

    def __init__(self, seed: int) -> None:
        self._rng, self._changed = random.Random(seed), threading.Condition()
        self._running: list[int] = []
        self._waiting: set[int] = set()
        self._turn: int | None = None

    def together(self, *works: Callable[[], None]) -> None:
        """Run them in threads, whose numbers order them whatever the system's are."""
        threads = [threading.Thread(target=self._run, args=(n, work)) for n, work in enumerate(works)]
        self._running = list(range(len(works)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, number: int, work: Callable[[], None]) -> None:
        threading.current_thread().turns = self, number  # type: ignore[attr-defined]
        try:
            self.step(number)
            work()
        finally:
            with self._changed:
                self._running.remove(number)
                self._choose()

    def step(self, number: int) -> None:
        with self._changed:
            self._waiting.add(number)
            self._choose()
            self._changed.wait_for(lambda: self._turn == number)
            self._turn = None
            self._waiting.discard(number)

    def _choose(self) -> None:
        if self._turn is None and self._running and self._waiting == set(self._running):
            self._turn = self._rng.choice(self._running)
            self._changed.notify_all()


class Idle:
    """In place of the thread that renews leases, which no order of operations could contain."""

    def __init__(self, renew: Callable[[int], None]) -> None:
        pass

    def stop(self) -> None:
        pass


class Client(InProcess):
    """A backend whose teacher is a number, which is what it says of everything."""

    def __init__(self, number: int) -> None:
        self._teacher: Any = number

    def describe(self, features=()) -> TeacherSpec:
        teacher = {"model": "n", "model_kwargs": {}, "weights": f"{self._teacher:064x}"}
        identity = {**teacher, "num_classes": CLASSES, "input_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
        return TeacherSpec(identity, {"batch_size": 8, "layers": {}}, {"form": "eager", "layers": {}})

    def resolve_plan(self, layers, batches):
        return self.describe().numerics

    def try_extracting(self, names):
        pass

    def extract(self, job, names):
        assert not names

    def try_batch(self, job, encoding, views, nondeterministic):
        pass


def answer(index, config, number, segment, shard, *_):
    shapes = {f.name: (len(segment.views), shard.samples, *f.shape) for f in segment.encoding.fields()}
    return {f.name: np.full(shapes[f.name], number, f.dtype) for f in segment.encoding.fields()}, Quality()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("small"), samples=(5,))


@pytest.fixture
def stepped(monkeypatch) -> None:
    def stepping(real):
        def operation(*args):
            turns = getattr(threading.current_thread(), "turns", None)
            if turns is not None:
                turns[0].step(turns[1])
            return real(*args)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(Store, name, stepping(getattr(Store, name)))
    monkeypatch.setattr(backend, "run_task", answer)
    canary = Canary("shard-0000.tar", "0", 0, np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setattr(run, "render_canaries", lambda *_: [canary])
    monkeypatch.setattr(run, "check_canaries", lambda *_: None)
    monkeypatch.setattr(locks, "_pause", lambda _: None)
    monkeypatch.setattr(lease, "_Renewing", Idle)
    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=["memory", "folder"])
def url(request, tmp_path) -> Iterator[Callable[[], str]]:
    """New places, one a call."""
    if request.param == "folder":
        yield lambda: str(tmp_path / uuid.uuid4().hex)
        return
    name = f"kdpipe-{uuid.uuid4().hex}"
    yield lambda: f"memory://{name}/{uuid.uuid4().hex}"
    if fsspec.filesystem("memory").exists(f"/{name}"):
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def both(world: World, where: str, seed: int, teachers: tuple[int, int]) -> list[KdpipeError | None]:
    """Have two clients make one cache; how each ended."""
    ended: list[KdpipeError | None] = [None, None]

    def client(n: int) -> None:
        try:
            targets = TargetsConfig(kind="dense")
            cache_views(where, world.index, VIEWS, Client(teachers[n]), targets, [0, 1])
        except KdpipeError as e:
            ended[n] = e

    Turns(seed).together(lambda: client(0), lambda: client(1))
    return ended


def content(where: str) -> dict[str, bytes]:
    store = Store(where)
    return {name: store.read(name) for name in store.files() if name != "provenance.json"}


def whose(where: str) -> int:
    """The teacher of a cache that opens, whose values it must have."""
    cache = Cache(Store(where))
    number = int(cache.identity["teacher"]["weights"], 16)
    reader = ArrayReader(cache)
    for segment in cache.segments:
        for shard in cache.committed(segment):
            for view in segment.views:
                assert (reader.read(segment, shard, view, 0, 5)["logits"] == number).all()
    assert check_integrity(cache.store)[0] == []
    return number


@pytest.mark.usefixtures("stepped")
def test_with_locks_one_teacher_wins_and_the_other_is_refused(small, url):
    wins = set()
    for seed in SEEDS:
        where = url()
        ended = both(small, where, seed, (1, 2))
        [error] = [e for e in ended if e is not None]
        assert isinstance(error, IdentityError)
        assert "made with another teacher.weights" in str(error)
        winner = whose(where)
        assert ended[winner - 1] is None
        assert len(Cache(Store(where)).commits) == 1
        wins.add(winner)
    assert wins == {1, 2}


@pytest.mark.usefixtures("stepped")
def test_with_locks_equal_clients_leave_the_undisturbed_bytes(small, url):
    undisturbed = url()
    cache_views(undisturbed, small.index, VIEWS, Client(1), TargetsConfig(kind="dense"), [0, 1])
    for seed in SEEDS:
        where = url()
        assert both(small, where, seed, (1, 1)) == [None, None]
        assert content(where) == content(undisturbed)


@pytest.mark.usefixtures("stepped")
@pytest.mark.parametrize("conditional", [True, False])
def test_where_locks_fail_nothing_mixed_opens(small, url, monkeypatch, conditional):
    """As if every holder had been stopped for longer than its lease lasts; and in a store that can have no locks."""
    monkeypatch.setattr(lease, "LEASE", 0.0)
    if not conditional:
        monkeypatch.setattr(stores, "_creates", lambda _: False)
    opened, refused = 0, 0
    for seed in SEEDS:
        where = url()
        both(small, where, seed, (1, 2))
        try:
            whose(where)
            opened += 1
        except CacheError:
            refused += 1
    assert opened
    assert opened + refused == len(SEEDS)
