"""Caching: the work of one task, and running all of them."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.caching.config import CachingConfig
    from kdpipe.caching.identity import check_canaries, make_identity
    from kdpipe.caching.run import CachingProgress, CachingReport, cache_views
else:
    __getattr__ = exports(
        __name__,
        {
            "config": "CachingConfig",
            "identity": "check_canaries make_identity",
            "run": "CachingProgress CachingReport cache_views",
        },
    )
