"""The loader: blocks, views and targets to batches."""

from pipeline.loader.batch import Batch
from pipeline.loader.loader import Loader, LoaderConfig

__all__ = ["Batch", "Loader", "LoaderConfig"]
