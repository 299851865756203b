"""What a cache will cost: bytes, files and time, from a sample of the samples."""
