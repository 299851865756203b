"""In which order an epoch visits the samples: a pure function of the seed and the epoch.

Blocks are permuted and dealt to lanes of nearly equal length; a lane shuffles its rows within windows of a few
blocks; the epoch takes one row from each lane in turn and skips lanes that ran out. Lanes give locality and
nothing else: neither the number of processes nor of workers enters, so a run may stop on four GPUs and go on
with two.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.views.draws import permutation


@dataclass(frozen=True)
class Order:
    """One epoch's sequence.

    Attributes:
        rows: int64 (N,), global rows in the order of their positions.
        lanes: int32 (N,), the lane of each position.
        bounds: int64 (batches + 1,), batch t is positions bounds[t] to bounds[t + 1].
    """

    rows: np.ndarray
    lanes: np.ndarray
    bounds: np.ndarray

    @property
    def steps(self) -> int:
        """Batches of the epoch."""
        return len(self.bounds) - 1


def epoch_order(blocks: Sequence[np.ndarray], seed: int, epoch: int, batch_size: int, lanes: int, window: int) -> Order:
    """The sequence of one epoch over blocks of rows, none empty.

    Args:
        blocks: the rows of each block, int64.
        seed: of the run.
        epoch: from 0.
        batch_size: rows in a batch over all processes.
        lanes: wanted; cut to the number of blocks and of rows in a batch.
        window: blocks within which a lane shuffles.
    """
    count = lane_count(len(blocks), batch_size, lanes)
    dealt: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, lane) for lane in range(count)]
    for block in permutation(len(blocks), "blocks", seed, epoch).tolist():
        length, lane = heapq.heappop(heap)
        dealt[lane].append(block)
        heapq.heappush(heap, (length + len(blocks[block]), lane))
    longest = max(length for length, _ in heap)
    # One column a lane: reading row by row takes one of each lane in turn, and -1 marks those that ran out.
    table = np.full((longest, count), -1, np.int64)
    for lane, numbers in enumerate(dealt):
        at = 0
        for first in range(0, len(numbers), window):
            rows = np.concatenate([blocks[b] for b in numbers[first : first + window]])
            table[at : at + len(rows), lane] = rows[permutation(len(rows), "rows", seed, epoch, lane, first)]
            at += len(rows)
    flat, there = table.reshape(-1), table.reshape(-1) >= 0
    lane_of = np.broadcast_to(np.arange(count, dtype=np.int32), table.shape).reshape(-1)
    return Order(flat[there], lane_of[there], batch_bounds(int(there.sum()), batch_size))


def plain_order(rows: np.ndarray, batch_size: int) -> Order:
    """Every row once, as they come; each position is a lane of its own, so workers share each batch evenly."""
    lanes = np.arange(len(rows), dtype=np.int32)
    return Order(rows, lanes, np.r_[np.arange(0, len(rows), batch_size), len(rows)].astype(np.int64))


def lane_count(blocks: int, batch_size: int, lanes: int) -> int:
    """Lanes that make sense: no more than blocks, nor than rows in a batch."""
    return max(1, min(lanes, blocks, batch_size))


def batch_bounds(rows: int, batch_size: int) -> np.ndarray:
    """Batches of `batch_size`; a rest shares the last two batches evenly.

    Every sample comes once an epoch, and no batch is a handful of rows that batch statistics can't stand.
    """
    full, rest = divmod(rows, batch_size)
    bounds = [i * batch_size for i in range(full + 1)]
    if rest and full:
        bounds[-1:] = [rows - (batch_size + rest) // 2, rows]
    elif rest:
        bounds.append(rows)
    return np.array(bounds, np.int64)
