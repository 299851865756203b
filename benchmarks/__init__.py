"""`kdpipe bench`: every claim of speed, size and exactness, as a command."""

from benchmarks.cli import bench

__all__ = ["bench"]
