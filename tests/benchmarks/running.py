"""Running `python -m benchmarks` inside a test."""

from functools import partial

from benchmarks.cli import bench
from tests.stages import running

benchmark, refused = partial(running.kdpipe, group=bench), partial(running.refused, group=bench)
