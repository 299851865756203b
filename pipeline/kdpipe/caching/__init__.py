"""Caching: the work of one task, running all of them, and proving afterwards that the cache tells the truth."""

from kdpipe.caching.identity import check_canaries, make_identity
from kdpipe.caching.run import CachingConfig, Progress, Report, cache_views
from kdpipe.verify.replay import check_truth

__all__ = [
    "CachingConfig",
    "Progress",
    "Report",
    "cache_views",
    "check_canaries",
    "check_truth",
    "make_identity",
]
