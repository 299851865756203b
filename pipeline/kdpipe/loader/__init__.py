"""The loader: blocks, views and targets to batches."""

from typing import TYPE_CHECKING

from kdpipe._util.lazy import exports

if TYPE_CHECKING:
    from kdpipe.loader.batch import Batch
    from kdpipe.loader.config import LoaderConfig
    from kdpipe.loader.loader import Loader
else:
    __getattr__ = exports(
        __name__,
        {
            "batch": "Batch",
            "config": "LoaderConfig",
            "loader": "Loader",
        },
    )
