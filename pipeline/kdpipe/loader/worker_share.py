"""What one worker of one process renders of an epoch: all that it keeps of the epoch's order."""

from dataclasses import dataclass

import numpy as np

from kdpipe.loader.order import Order
from kdpipe.views import View


@dataclass(frozen=True)
class WorkerShare:
    """The positions of one worker, M of the epoch's N, ascending; and each whole batch's counts.

    Attributes:
        rows, shown, units: (M,), as in Order.
        places: (M,), place in the process's part of its batch.
        bounds: int64 (steps + 1,), step t is positions bounds[t] to bounds[t + 1].
        views: those that are shown.
        global_rows: int64 (steps,), rows of each whole batch, over all processes.
        global_labelled: int64 (steps,), those of them with a label.
    """

    rows: np.ndarray
    shown: np.ndarray
    units: np.ndarray
    places: np.ndarray
    bounds: np.ndarray
    views: tuple[View, ...]
    global_rows: np.ndarray
    global_labelled: np.ndarray

    @classmethod
    def of(
        cls, order: Order, labels: np.ndarray, rank: int, world: int, worker: int, workers: int, start: int
    ) -> "WorkerShare":
        """The share of a worker, its process `rank` among `world`, from step `start` on.

        `labels`: int32, of all rows that the order names.
        """
        places = order.places(rank, world)
        mine = (places >= 0) & ((order.streams // world) % workers == worker)
        mine[: order.bounds[start]] = False
        each = np.add.reduceat(mine, order.bounds[:-1], dtype=np.int64)
        return cls(
            rows=order.rows[mine],
            shown=order.shown[mine],
            units=order.units[mine],
            places=places[mine],
            bounds=np.r_[0, np.cumsum(each)],
            views=order.views,
            global_rows=np.diff(order.bounds),
            global_labelled=np.add.reduceat(known(order, labels), order.bounds[:-1], dtype=np.int64),
        )

    @property
    def steps(self) -> int:
        """Batches of the epoch."""
        return len(self.bounds) - 1

    def at(self, step: int) -> slice:
        """The positions of one step."""
        return slice(int(self.bounds[step]), int(self.bounds[step + 1]))


def known(order: Order, labels: np.ndarray) -> np.ndarray:
    """Whether each position has a label, bool (N,); a mixed view has one if both its samples have."""
    found = labels[order.rows] >= 0
    if order.partners is not None:
        found &= labels[order.partners] >= 0
    return found
