"""Caching: the work of one task, and running all of them."""

from kdpipe.caching.config import CachingConfig
from kdpipe.caching.identity import check_canaries, make_identity
from kdpipe.caching.run import CachingProgress, CachingReport, cache_views

__all__ = [
    "CachingConfig",
    "CachingProgress",
    "CachingReport",
    "cache_views",
    "check_canaries",
    "make_identity",
]
