"""Rows of cached targets on their way from blocks to batches."""

import numpy as np
import torch

from kdpipe.targets import ArrayField
from kdpipe.views import View


class TargetRows:
    """Rows of cached targets, picked from open blocks one by one and handed out as a batch.

    A block here is one view of a block of the index.
    """

    def __init__(self, fields: tuple[ArrayField, ...]) -> None:
        self._fields = fields
        self._open: dict[tuple[int, View], list[np.ndarray]] = {}
        self._taken: list[list[np.ndarray]] = [[] for _ in self._fields]

    def __contains__(self, block: tuple[int, View]) -> bool:
        return block in self._open

    def open(self, block: tuple[int, View], arrays: dict[str, np.ndarray]) -> None:
        """Hold a block's rows, by field name, until `drop`."""
        self._open[block] = [arrays[f.name] for f in self._fields]

    def drop(self, block: tuple[int, View]) -> None:
        """Let a block go."""
        del self._open[block]

    def take(self, block: tuple[int, View], row: int) -> None:
        """Add a row of an open block to the batch."""
        for taken, array in zip(self._taken, self._open[block], strict=True):
            taken.append(array[row])

    def batch(self) -> dict[str, torch.Tensor]:
        """The rows taken since the last call, by field name."""
        out = {}
        for field, taken in zip(self._fields, self._taken, strict=True):
            rows = np.stack(taken) if taken else np.empty((0, *field.shape), field.dtype)
            out[field.name] = torch.from_numpy(rows)
            taken.clear()
        return out

    def clear(self) -> None:
        """Let everything go."""
        self._open.clear()
        for taken in self._taken:
            taken.clear()
