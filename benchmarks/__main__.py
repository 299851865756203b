"""`python -m benchmarks`."""

from benchmarks.cli import bench

if __name__ == "__main__":  # processes that are spawned import this again
    bench(prog_name="python -m benchmarks")
