"""Shards: WebDataset tars, indexed once, read block by block."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.shards.build import build_index
    from kdpipe.shards.index import Index, Shard
    from kdpipe.shards.read import BlockReader
else:
    __getattr__ = exports(
        __name__,
        {
            "build": "build_index",
            "index": "Index Shard",
            "read": "BlockReader",
        },
    )
