"""The loader: blocks, views and targets to batches."""

from kdpipe.loader.batch import Batch
from kdpipe.loader.loader import Loader, LoaderConfig

__all__ = ["Batch", "Loader", "LoaderConfig"]
