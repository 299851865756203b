"""Faults of caching on dask workers: of the client, of a worker, of the scheduler; and of two clients at one cache."""

import random
import shutil
import signal
import time
from pathlib import Path

from kdpipe.cache import Store
from kdpipe.verification import check_integrity
from tests.chaos import child, disk, processes
from tests.chaos.moments import ERRORS, Fault
from tests.chaos.network import SECONDS
from tests.chaos.scene import Files, Scene, differing
from tests.chaos.verdict import Finding, Run, Skipped
from tests.tiny import tree

# Seconds a batch, so that there is some time to disturb a run in.
_SLOW = {SECONDS: "0.03"}
# A worker that stopped answering is given up after seconds instead of minutes; not while it imports torch, though.
_IMPATIENT = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "20s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
_TASKS = 16


def _undisturbed(scene: Scene) -> Files:
    out = scene.folder / "undisturbed" / "many.zarr"
    if not out.exists():
        ended = child.run(scene.caching(out, many=True), scene.folder / "notes" / "many")
        assert ended.code == 0, ended
    return tree(out)


def _finish(scene: Scene, out: Path, what: str) -> None:
    """Repeat the command in one process; whatever happened before, the bytes are those of an undisturbed run."""
    again = child.run(scene.caching(out, many=True), out.parent / "again")
    if again.code != 0:
        raise Finding(what, f"repeated: exit code {again.code}: {again.err}")
    different = differing(tree(out), _undisturbed(scene))
    if different:
        raise Finding(what, f"differs from an undisturbed run: {different[:5]}")
    problems = check_integrity(Store(out))[0]
    if problems:
        raise Finding(what, f"damaged: {problems}")


def _await_commits(out: Path, rng: random.Random, client: child.Running) -> int:
    """Until some tasks are committed, and a little more; how many."""
    wanted, began = rng.randrange(1, _TASKS // 2), time.monotonic()
    while len(list(out.glob("commits/*/shard-*.json"))) < wanted and client.alive():
        assert time.monotonic() - began < 120, "no task is committed"
        time.sleep(0.005)
    time.sleep(rng.random() * 0.1)
    return wanted


def _expect(ended: child.Ended, codes: tuple[int, ...], what: str, words: str = "") -> Run:
    if ended.code not in codes or "Traceback" in ended.err or (ended.code == 2 and words not in ended.error):
        raise Finding(what, f"exit code {ended.code}: {ended.err[-1500:]}")
    return Run(what, "killed" if ended.code < 0 else f"exit code {ended.code}", ended.error)


def worker(scene: Scene, folder: Path, rng: random.Random, fault: str) -> Run:
    """One of two workers of a cluster is killed or stopped, or its disk fails, at any of its moments."""
    if fault in ERRORS and not disk.available():
        raise Skipped("this system has no seccomp filters")
    out, at = folder / "c.zarr", rng.randint(1, 150)
    what = f"{fault} of a worker at its moment {at}"
    happens = Fault(fault, at, str(out), once=str(folder / "once"))
    with (
        processes.cluster(folder / "cluster", 2, happens) as cluster,
        child.running(_remote(scene, out, cluster), folder / "notes", env=_SLOW | _IMPATIENT) as client,
    ):
        ended = client.wait()
    # One that is lost while all are asked for their teacher ends the run, in a line.
    run = _expect(ended, (0, 1, 2) if fault in ERRORS else (0, 2), what, "" if fault in ERRORS else "a worker died")
    _finish(scene, out, what)
    return run if (folder / "once").exists() else Run(what, "not reached")


def scheduler(scene: Scene, folder: Path, rng: random.Random) -> Run:
    """The scheduler is killed when some tasks are done: the client says so."""
    out = folder / "c.zarr"
    with (
        processes.cluster(folder / "cluster", 2) as cluster,
        child.running(_remote(scene, out, cluster), folder / "notes", env=_SLOW | _IMPATIENT) as client,
    ):
        what = f"SIGKILL of the scheduler after {_await_commits(out, rng, client)} tasks"
        cluster.scheduler.kill()
        ended = client.wait()
        run = _expect(ended, (0, 2), what, "the scheduler is gone")
        # At once, while workers may still be at it.
        _finish(scene, out, what)
    return run


def client(scene: Scene, folder: Path, rng: random.Random) -> Run:
    """The client of a cluster is killed at any of its moments, or when some tasks are done."""
    out = folder / "c.zarr"
    with processes.cluster(folder / "cluster", 2) as cluster:
        with child.running(_remote(scene, out, cluster), folder / "notes", env=_SLOW) as one:
            what = f"SIGKILL of the client after {_await_commits(out, rng, one)} tasks"
            one.process.kill()
            ended = one.wait()
        run = _expect(ended, (-signal.SIGKILL, 0), what)
        _finish(scene, out, what)
    return run


def _remote(scene: Scene, out: Path, cluster: processes.Forked) -> list[object]:
    return scene.caching(out, "0:2", "--scheduler", cluster.address, many=True)


def local(scene: Scene, folder: Path, rng: random.Random) -> Run:
    """`--workers 2`: a worker is killed or stopped, or the client is killed."""
    out = folder / "c.zarr"
    number, whom = rng.choice([(signal.SIGKILL, "worker"), (signal.SIGSTOP, "worker"), (signal.SIGKILL, "client")])
    argv = scene.caching(out, "0:2", "--workers", 2, many=True)
    with child.running(argv, folder / "notes", env=_SLOW | _IMPATIENT) as one:
        what = f"{number.name} of the {whom} after {_await_commits(out, rng, one)} tasks"
        workers = [p for p in one.children() if "spawn_main" in " ".join(p.cmdline())]
        if whom == "client":
            one.process.kill()
        elif workers:
            rng.choice(workers).send_signal(number)
        ended = one.wait()
        run = _expect(ended, (-signal.SIGKILL, 0) if whom == "client" else (0,), what)
        # At once, while the workers of a client that has gone may still be at it.
        _finish(scene, out, what)
    return run


def two_clients(scene: Scene, folder: Path, rng: random.Random) -> Run:
    """Two commands at one cache; one of them may be stopped for a while, or killed, at any moment."""
    out, at = folder / "c.zarr", rng.randint(1, 600)
    fault = rng.choice(["nothing", "SIGSTOP", "SIGKILL"])
    argv, what = scene.caching(out, many=True), f"{fault} of one of two clients, at its moment {at}"
    with child.running(argv, folder / "one", Fault(fault, at, str(out)), env=_SLOW) as one:
        time.sleep(rng.random())
        with child.running(argv, folder / "two", env=_SLOW) as two:
            run = _expect(one.wait(), (0, -signal.SIGKILL) if fault == "SIGKILL" else (0,), what)
            _expect(two.wait(), (0,), what)
    _finish(scene, out, what)
    return run


def growing(scene: Scene, folder: Path, rng: random.Random) -> Run:
    """Views are added to a cache while a student learns from it, who is stopped, killed or left alone."""
    expected, moments = scene.undisturbed("train-student")
    cache, out = folder / "cache.zarr", folder / "out"
    shutil.copytree(scene.cache, cache)
    # The run's header names no place: weights of a cache elsewhere are the same.
    fault, at = rng.choice(["nothing", "SIGSTOP", "SIGKILL"]), rng.randint(moments // 4, moments)
    what = f"a cache that grows, {fault} of its reader at moment {at} of {moments}"
    argv = scene.training(out / "run", cache)
    with child.running(argv, folder / "train", Fault(fault, at, str(out))) as one:
        began = time.monotonic()
        while not (out / "run" / "checkpoint.safetensors").exists() and one.alive():
            assert time.monotonic() - began < 120, "training doesn't begin"
            time.sleep(0.005)
        added = child.run(scene.caching(cache, "0:6"), folder / "grow")
        _expect(added, (0,), what)
        run = _expect(one.wait(), (0, -signal.SIGKILL) if fault == "SIGKILL" else (0,), what)
    again = child.run(argv, folder / "again")
    if again.code != 0:
        raise Finding(what, f"repeated: exit code {again.code}: {again.err}")
    different = differing(scene.commands["train-student"].leaves(out), expected)
    if different:
        raise Finding(what, f"differs from an undisturbed run: {different}")
    return run
