"""The cache: immutable segments, atomic task commits, reading."""

from kdpipe.cache.cache import Cache, check_files, require_identity
from kdpipe.cache.commit import add_segment, commit_task, create, read_canaries
from kdpipe.cache.layout import Segment
from kdpipe.cache.read import ArrayReader
from kdpipe.cache.reader import CacheReader, require_match
from kdpipe.cache.select import CacheRequest, Selection
from kdpipe.cache.several import MultiCacheReader
from kdpipe.cache.store import Store

__all__ = [
    "ArrayReader",
    "Cache",
    "CacheReader",
    "CacheRequest",
    "MultiCacheReader",
    "Segment",
    "Selection",
    "Store",
    "add_segment",
    "check_files",
    "commit_task",
    "create",
    "read_canaries",
    "require_identity",
    "require_match",
]
