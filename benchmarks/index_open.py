"""A very large index: what opening it and a run's start cost, and how much of it processes share."""

import multiprocessing
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_index import CLASSES, made_up_index
from benchmarks.measure import spread
from kdpipe.errors import ConfigError
from kdpipe.loader import Loader
from kdpipe.shards import Index
from kdpipe.views import ViewsConfig

# What is guaranteed at 14 million samples.
_SECONDS, _MB = 2.0, 600.0
_ROLLUP, _CLEAR = Path("/proc/self/smaps_rollup"), Path("/proc/self/clear_refs")


def index_open(folder: Path, samples: int = 14_000_000, readers: int = 4, repeats: int = 3) -> dict[str, Any]:
    """Open the index of so many samples in fresh processes, and in several at once; its files are in the file cache.

    Returns:
        `seconds`, `added_mb`, `resident_mb`: of Index.open, its length, a block's rows and 1,000 keys all over it:
            private memory, and with the touched pages of the index. MB are 2^20 bytes.
        `start_seconds`: of what every run does besides: labels checked, fingerprint, Loader (which reads the index
            through), and `pickled_mb`, what goes to a process that isn't forked.
        `epoch_order_seconds`, `epoch_order_mb`: making a training epoch's order, and its peak of memory;
            `worker_mb`: what stays of it in a loader worker, one of 4.
        `resident_mb_each`, `shared_mb_each`, `private_mb_each`: in `readers` processes that touched every page: of the
            index's files what each has in memory, its share of that among the others (PSS), and what is its own.

    Raises:
        ConfigError: no Linux here, whose memory figures these are.
    """
    if not _ROLLUP.exists():
        raise ConfigError("memory is measured on Linux alone", where="index-open")
    index = made_up_index(folder / "large.index", samples)
    alone = [_ask((_open, index.path))[0] for _ in range(repeats)]
    [start] = _ask((_start, index.path))
    together = _ask(*[(_touch, index.path)] * readers)
    each = {name: [found[name] for found in alone] for name in alone[0]}
    held = max(each["seconds"]) < _SECONDS and max(each["resident_mb"]) < _MB
    return {
        **{name: spread(values) for name, values in each.items()},
        "bound": f"{_SECONDS:g} s and {_MB:g} MB: {'held' if held else 'broken'}",
        **start,
        **{name: float(np.mean([found[name] for found in together])) for name in together[0]},
        "readers": readers,
        "samples": samples,
        "index_mb": sum(file.stat().st_size for file in index.path.iterdir()) / 2**20,
        "repeats": repeats,
    }


Work = Callable[[Path], Callable[[], dict[str, float]]]


def _ask(*works: tuple[Work, Path]) -> list[dict[str, float]]:
    """Answers of fresh processes, which measure when all of them have done their work and none has ended."""
    # Forked from a server that has imported everything and done nothing: fresh, and there in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.index_open"])
    pairs = [context.Pipe() for _ in works]
    children = [
        context.Process(target=_child, args=(*work, theirs)) for work, (_, theirs) in zip(works, pairs, strict=True)
    ]
    pipes = [ours for ours, _ in pairs]
    for child, (_, theirs) in zip(children, pairs, strict=True):
        child.start()
        theirs.close()  # so that a child's death is the end of its pipe
    try:
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("measure")
        return [pipe.recv() for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.join()


def _child(work: Work, path: Path, pipe: Connection) -> None:
    measure = work(path)
    pipe.send("ready")
    pipe.recv()
    pipe.send(measure())
    with suppress(EOFError):
        pipe.recv()  # the others measure still


def _open(path: Path) -> Callable[[], dict[str, float]]:
    rows = np.random.default_rng(0).random(1000)
    before, began = _memory(), time.perf_counter()
    index = Index.open(path)
    for row in (rows * len(index)).astype(int).tolist():
        index.key(row)
    index.rows(index.blocks - 1)
    seconds, after = time.perf_counter() - began, _memory()
    added = {name: after[name] - before[name] for name in after}
    return lambda: {"seconds": seconds, "added_mb": added["Anonymous"], "resident_mb": added["Rss"]}


def _start(path: Path) -> Callable[[], dict[str, float]]:
    index, began = Index.open(path), time.perf_counter()
    index.check_labels(CLASSES)
    index.fingerprint  # noqa: B018
    loader = Loader(index, ViewsConfig(), 224, 1024)
    found = {"start_seconds": time.perf_counter() - began, "pickled_mb": len(pickle.dumps((index, loader))) / 2**20}
    before, began = _memory(), time.perf_counter()
    _CLEAR.write_text("5")  # resets the peak so far
    order = loader.order(0)
    found["epoch_order_seconds"] = time.perf_counter() - began
    found["epoch_order_mb"] = _status("VmHWM") - before["Rss"]
    del order
    before = _memory()
    share = loader.share(1, 0, 0, 4)
    found["worker_mb"] = _memory()["Anonymous"] - before["Anonymous"]
    return lambda: {**found, "worker_rows": len(share.rows)}


def _touch(path: Path) -> Callable[[], dict[str, float]]:
    before, index = _memory(), Index.open(path)
    for values in [index.labels, index.image_start, index.image_size, *vars(index).values()]:
        if isinstance(values, np.ndarray):
            int(values.max())
    for row in range(0, len(index), 128):  # a page of keys has more
        index.key(row)

    def measure() -> dict[str, float]:
        pages = _pages(index.path)
        own = _memory()["Anonymous"] - before["Anonymous"]
        return {"shared_mb_each": pages["Pss"], "private_mb_each": own, "resident_mb_each": pages["Rss"]}

    return measure


def _memory() -> dict[str, float]:
    """Resident memory of this process, and what of it is no file's; MB."""
    fields = (line.split() for line in _ROLLUP.read_text().splitlines()[1:])
    return {f[0][:-1]: int(f[1]) / 1024 for f in fields if f[0] in ("Rss:", "Anonymous:")}


def _pages(folder: Path) -> dict[str, float]:
    """Resident pages of a folder's files, and this process's share of them among all that have them (PSS); MB."""
    found, ours = {"Rss": 0.0, "Pss": 0.0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # a mapping's head; its fields follow
            ours = rest[-1].startswith(f"{folder}/")
        elif ours and first[:-1] in found:
            found[first[:-1]] += int(rest[0]) / 1024
    return found


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
