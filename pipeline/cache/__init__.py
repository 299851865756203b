"""The cache: immutable segments, atomic task commits, reading, integrity."""

from pipeline.cache.cache import Cache, check_files, require_identity
from pipeline.cache.commit import add_segment, commit_task, create, read_canaries
from pipeline.cache.integrity import check_integrity
from pipeline.cache.joint import JointReader
from pipeline.cache.layout import Segment
from pipeline.cache.read import ArrayReader
from pipeline.cache.reader import CacheReader, require_match
from pipeline.cache.select import Selection, Want
from pipeline.cache.store import Store

__all__ = [
    "ArrayReader",
    "Cache",
    "CacheReader",
    "JointReader",
    "Segment",
    "Selection",
    "Store",
    "Want",
    "add_segment",
    "check_files",
    "check_integrity",
    "commit_task",
    "create",
    "read_canaries",
    "require_identity",
    "require_match",
]
