"""Every claim of speed, size and exactness as a command: `python -m benchmarks NAME`, from the root of a checkout."""
