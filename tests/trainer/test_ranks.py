"""Two processes train what one would: the same losses, and a run may change their number when it goes on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.trainer import train
from tests.trainer import featured, tiny

SCRIPT = """
import sys
import torch
from kdpipe.shards import Index
from kdpipe.trainer import train
from tests.trainer import featured, tiny

world, folder, out, stop = sys.argv[1:]
torch.set_num_threads(1)
seen = 0

def on_step(progress):
    global seen
    seen += 1
    print("STEP", progress.loss)
    if seen == int(stop):
        sys.exit(3)

train({"tiny": tiny, "featured": featured}[world].distributed_job(folder), out, on_step=on_step)
"""


def run(world: int, data: Path, out: Path, stop: int = 0, of: str = "tiny") -> list[float]:
    """Train in processes as torchrun would start them; returns the loss of each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, of, str(data), str(out), str(stop)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    told = []
    for child in children:
        try:
            # The others wait for the first until it is gone; then they fail, which is what torchrun is for.
            output, errors = child.communicate(timeout=120)
        finally:
            child.kill()
        told.append(output)
        if not stop:
            assert child.returncode == 0, errors
    assert not told[1:] or not any(told[1:])
    return [float(line.split()[1]) for line in told[0].splitlines() if line.startswith("STEP")]


@pytest.fixture(scope="module")
def alone(data, index, validation, cache, tmp_path_factory) -> tuple[list[float], list[dict]]:
    losses: list[float] = []
    out = tmp_path_factory.mktemp("alone") / "run"
    train(tiny.distributed_job(str(data)), out, log=lambda _: None, on_step=lambda p: losses.append(p.loss))
    return losses, tiny.lines(out)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(alone, data, tmp_path):
    losses = run(2, data, tmp_path / "run")
    assert losses == pytest.approx(alone[0], abs=1e-5)
    for ours, theirs in zip(tiny.lines(tmp_path / "run"), alone[1], strict=True):
        assert ours["validation"]["samples"] == theirs["validation"]["samples"]
        assert ours["validation"]["nll"] == pytest.approx(theirs["validation"]["nll"], abs=1e-4)


@pytest.mark.slow
def test_stop_on_two_go_on_with_one(alone, data, tmp_path):
    begun = run(2, data, tmp_path / "run", stop=6)
    assert len(begun) == 6
    gone_on: list[float] = []
    job = tiny.distributed_job(str(data))
    train(job, tmp_path / "run", log=lambda _: None, on_step=lambda p: gone_on.append(p.loss))
    # The checkpoint is from after the fifth step.
    assert begun[:5] + gone_on == pytest.approx(alone[0], abs=1e-5)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == len(alone[0])


@pytest.mark.slow
def test_losses_that_compare_rows_and_adapters_are_those_of_one_process(tmp_path):
    featured.make(tmp_path)
    losses: list[float] = []
    job = featured.distributed_job(str(tmp_path))
    train(job, tmp_path / "alone", log=lambda _: None, on_step=lambda p: losses.append(p.loss))
    assert run(2, tmp_path, tmp_path / "run", of="featured") == pytest.approx(losses, rel=1e-4)
    assert len(losses) == 4
