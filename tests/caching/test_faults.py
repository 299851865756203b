"""Thirty disturbed runs on real worker processes, each at an instant of its own: all end with the undisturbed bytes."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import psutil
import pytest

from pipeline.cache import Store, check_integrity
from tests.caching import faulty
from tests.tiny import World, make_world, tree

pytestmark = pytest.mark.slow
SHARDS = 16
SEEDS = range(5)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("many"), samples=(9, 8, 7, 8) * (SHARDS // 4))


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "c"
    assert faulty.cache(many.index, str(out)) == 0
    return tree(out)


class Child(subprocess.Popen):
    """A process that says things to a file: a pipe that nobody reads fills up, and stops who writes."""

    def __init__(self, command: list[str], file: TextIO) -> None:
        super().__init__(command, stderr=file, cwd=Path(__file__).parents[2])
        self._file = file

    def said(self) -> str:
        self._file.seek(0)
        return self._file.read()


@contextlib.contextmanager
def started(*words: object) -> Iterator[Child]:
    """A child that is gone, with all its own children, when the context ends."""
    with tempfile.TemporaryFile("w+") as file, Child([sys.executable, "-m", *map(str, words)], file) as child:
        try:
            yield child
        finally:
            for process in [*psutil.Process(child.pid).children(recursive=True)] if child.poll() is None else []:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            child.kill()


def client(many: World, out: Path, *address: str) -> contextlib.AbstractContextManager[Child]:
    return started("tests.caching.faulty", many.index_path, out, *address)


def wait_for_commits(out: Path, rng: random.Random, child: Child) -> None:
    """Until some tasks are committed, and a little more."""
    wanted = rng.randrange(1, SHARDS // 2)
    began = time.monotonic()
    while len(list(out.glob("commits/*/shard-*.json"))) < wanted:
        assert child.poll() is None, child.said()
        assert time.monotonic() - began < 120
        time.sleep(0.005)
    time.sleep(rng.random() * 0.2)


def workers_of(child: Child) -> list[psutil.Process]:
    """The worker processes: those that have opened the index."""
    return [p for p in psutil.Process(child.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def finish(many: World, out: Path, undisturbed: dict[str, bytes]) -> None:
    """Repeat the command; whatever happened before, the bytes are those of an undisturbed run."""
    assert faulty.cache(many.index, str(out)) == 0
    assert tree(out) == undisturbed
    assert check_integrity(Store(out))[0] == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stops(many, undisturbed, tmp_path, seed, number):
    rng, out = random.Random(seed), tmp_path / "c"
    with client(many, out) as child:
        wait_for_commits(out, rng, child)
        rng.choice(workers_of(child)).send_signal(number)
        assert child.wait(120) == 0, child.said()
        assert tree(out) == undisturbed
    finish(many, out, undisturbed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_client_that_dies(many, undisturbed, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "c"
    with client(many, out) as child:
        wait_for_commits(out, rng, child)
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        # At once, while its workers may still be at it.
        finish(many, out, undisturbed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_scheduler_that_dies(many, undisturbed, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "c"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    worker = ("distributed.cli.dask_worker", address, "--nthreads", 1, "--no-dashboard", "--death-timeout", 20)
    with started("distributed.cli.dask_scheduler", "--port", port, "--no-dashboard") as scheduler:
        time.sleep(2)
        with started(*worker), started(*worker), client(many, out, address) as child:
            wait_for_commits(out, rng, child)
            scheduler.send_signal(signal.SIGKILL)
            assert child.wait(120) == 2, child.said()
            assert "the scheduler is gone" in child.said()
            assert "Repeat the command" in child.said()
            finish(many, out, undisturbed)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_clients_at_once(many, undisturbed, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "c"
    with client(many, out) as first:
        time.sleep(rng.random() * 3)
        with client(many, out) as second:
            assert [first.wait(120), second.wait(120)] == [0, 0]
    assert tree(out) == undisturbed
    finish(many, out, undisturbed)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of a quarter of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_is_full(many, undisturbed, small_disk, seed):
    rng, out = random.Random(seed), small_disk / "c"
    filler = small_disk / "filler"
    with client(many, out) as child:
        wait_for_commits(out, rng, child)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        # It ends and says so; or the last byte was written just before.
        ended = child.wait(120)
        assert ended == 0 or (ended == 2 and "No space left on device" in child.said()), child.said()
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    finish(many, out, undisturbed)
