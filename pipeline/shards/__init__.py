"""Shards: WebDataset tars, indexed once, read block by block."""

from pipeline.shards.build import build_index
from pipeline.shards.index import Index, Shard
from pipeline.shards.read import BlockReader

__all__ = ["BlockReader", "Index", "Shard", "build_index"]
