"""`kdpipe bench`: every claim of speed, size and exactness, as a command."""

from stages.bench.cli import bench

__all__ = ["bench"]
