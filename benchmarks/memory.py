"""Peak memory of `cache-teacher`: a run of many tasks must need no more than a run of one."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import KDPIPE, spread
from kdpipe.shards import build_index
from kdpipe.shards.pack import Item, write_shards

_BOUND = 1.1


def memory(
    folder: Path, tasks: int = 40, samples: int = 64, size: int = 224, views: int = 2, repeats: int = 3
) -> dict[str, Any]:
    """Peak memory, in MB of 2^20 bytes, of the command at one task and at many, each run in a process of its own.

    A task is a shard of made-up photographs in views of `size` pixels; the teacher is a linear layer on pooled
    pixels. The run of one task has the same index, limited to its first shard.
    """
    index = _index(folder, tasks, samples)
    peaks: dict[int, list[float]] = {1: [], tasks: []}
    for turn in range(repeats):
        for count, found in peaks.items():
            out = folder / f"memory-{count}-{turn}.zarr"
            found.append(_peak(index, out, count * samples, size, views))
    one, many = (spread(found) for found in peaks.values())
    ratio = many["median"] / one["median"]
    return {
        "peak_mb_one": one,
        "peak_mb_many": many,
        "reference": "the same command at one task",
        "ratio": ratio,
        "bound": f"ratio at most {_BOUND}: {'held' if ratio <= _BOUND else 'broken'}",
        "tasks": tasks,
        "samples_a_task": samples,
        "views": views,
        "size": size,
        "repeats": repeats,
    }


def _index(folder: Path, shards: int, samples: int) -> Path:
    """Shards of one and the same photographs under different keys, so that a task is a task."""
    rng = np.random.default_rng(0)
    photographs = [_photograph(rng) for _ in range(samples)]
    items = [Item(f"s{n:06d}", photographs[n % samples], n % 1000) for n in range(shards * samples)]
    (folder / "photographs").mkdir()
    write_shards(folder / "photographs", "p", items, samples)
    return build_index(folder / "photographs", folder / "photographs.index", check="header").path


def _photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 smooth colours with some noise, about as many bytes as a photograph of that size."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (375, 500, 1))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _peak(index: Path, out: Path, limit: int, size: int, views: int) -> float:
    """Run the command; the largest resident memory it ever had."""
    options = {
        "--index": index,
        "--limit": limit,
        "--teacher": "benchmarks.data:cheap_teacher",
        "--num-classes": 1000,
        "--input-size": size,
        "--views": f"0:{views}",
        "--out": out,
    }
    command = [*KDPIPE, "cache-teacher", *(str(x) for pair in options.items() for x in pair)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        errors = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"cache-teacher ended with {child.returncode}: {errors[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kB here
    return usage.ru_maxrss * unit / 2**20
