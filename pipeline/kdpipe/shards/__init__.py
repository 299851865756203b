"""Shards: WebDataset tars, indexed once, read block by block."""

from kdpipe.shards.build import build_index
from kdpipe.shards.index import Index, Shard
from kdpipe.shards.read import BlockReader

__all__ = ["BlockReader", "Index", "Shard", "build_index"]
