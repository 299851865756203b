"""The loader: blocks, views and targets to batches."""

from kdpipe.loader.batch import Batch
from kdpipe.loader.config import LoaderConfig
from kdpipe.loader.loader import Loader

__all__ = ["Batch", "Loader", "LoaderConfig"]
