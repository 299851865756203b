"""In which order an epoch visits the samples: a pure function of the seed and the epoch.

Blocks are permuted and dealt to streams of nearly equal length; a stream shuffles its units within windows of a few
blocks; the epoch takes one unit from each stream in turn and skips streams that ran out. A unit is what is decoded
once: a row, or a pair that is mixed, in one view or several. Lanes give locality and nothing else: neither the
number of processes nor of workers enters, so a run may stop on four GPUs and resume with two.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdpipe.views import View
from kdpipe.views.draws import permutation


@dataclass(frozen=True)
class Order:
    """One epoch's sequence.

    Integers are as narrow as they may be, for every process makes orders over all samples.

    Attributes:
        rows: row_type (N,), global rows in the order of their positions.
        shown: unsigned (N,), which of `views` a position shows.
        units: row_type (N,), the unit of each position, ascending.
        streams: int16 or row_type (N,), the stream of each position.
        bounds: int64 (batches + 1,), batch t is positions bounds[t] to bounds[t + 1].
        views: those that are shown.
        partners: row_type (N,), the row that a position's row is mixed with, itself for none; None without mixing.
    """

    rows: np.ndarray
    shown: np.ndarray
    units: np.ndarray
    streams: np.ndarray
    bounds: np.ndarray
    views: tuple[View, ...]
    partners: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Batches of the epoch."""
        return len(self.bounds) - 1

    def part(self, start: int, stop: int, batch_size: int) -> "Order":
        """Positions start to stop - 1, as an epoch of their own."""
        # Copies: slices would keep the whole alive.
        cut = {name: getattr(self, name)[start:stop].copy() for name in ("rows", "shown", "units", "streams")}
        return replace(self, **cut, bounds=batch_bounds(stop - start, batch_size))

    def places(self, rank: int, world: int) -> np.ndarray:
        """Place of each position in this process's part of its batch; -1 where another process has it. row_type (N,).

        Units are dealt in turn: with streams a multiple of the processes, each reads its own until some run out.
        """
        lengths = np.diff(self.bounds)
        mine = self.units % world == rank
        # In place: at millions of samples each array more is felt.
        found = np.cumsum(mine, dtype=self.units.dtype)
        found -= mine
        found -= np.repeat(found[self.bounds[:-1]], lengths)
        found[~mine] = -1
        return found


def epoch_order(
    blocks: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    batch_size: int,
    streams: int,
    window: int,
    views: tuple[View, ...] = (0,),
) -> Order:
    """The sequence of one epoch over blocks of units, none empty.

    Args:
        blocks: the rows of each block, (n,), or of its units, (units, 2), -1 where a row is alone.
        seed: of the run.
        epoch: from 0; of several views the number of their pass.
        batch_size: rows in a batch over all processes.
        streams: wanted; cut to the number of blocks and of rows in a batch.
        window: blocks within which a stream shuffles.
        views: shown of every row, one after another.
    """
    count = lane_count(len(blocks), batch_size, streams)
    dealt: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, stream) for stream in range(count)]
    for block in permutation(len(blocks), "blocks", seed, epoch).tolist():
        length, stream = heapq.heappop(heap)
        dealt[stream].append(block)
        heapq.heappush(heap, (length + len(blocks[block]), stream))
    longest = max(length for length, _ in heap)
    width = 1 if blocks[0].ndim == 1 else blocks[0].shape[1]
    # One column a stream: reading row by row takes one of each stream in turn, and -1 marks those that ran out.
    table = np.full((longest, count, width), -1, blocks[0].dtype)
    for stream, numbers in enumerate(dealt):
        at = 0
        for first in range(0, len(numbers), window):
            units = np.concatenate([blocks[b] for b in numbers[first : first + window]]).reshape(-1, width)
            mixed = permutation(len(units), "rows", seed, epoch, stream, first)
            table[at : at + len(units), stream] = units[mixed]
            at += len(units)
    flat = table.reshape(-1, width)
    there = (flat >= 0).any(axis=1)
    lane_of = np.broadcast_to(np.arange(count, dtype=_lane_type(count)), table.shape[:2]).reshape(-1)
    units, lane_of = flat[there], lane_of[there]
    del table, flat, there  # before as much again is made of them
    return _expanded(units, lane_of, views, batch_size)


def plain_order(rows: np.ndarray, batch_size: int, views: tuple[View, ...] = ("center",)) -> Order:
    """Every row as they come, its views together in one batch; a stream a row, so workers share batches evenly."""
    whole = max(1, batch_size // len(views)) * len(views)
    order = _expanded(rows[:, None], np.arange(len(rows), dtype=_lane_type(len(rows))), views, batch_size)
    bounds = np.r_[np.arange(0, len(order.rows), whole), len(order.rows)].astype(np.int64)
    return replace(order, bounds=bounds)


def _expanded(units: np.ndarray, streams: np.ndarray, views: tuple[View, ...], batch_size: int) -> Order:
    """Units (U, width) in sequence to positions: of each unit all rows in the first view, then in the next."""
    shape = (len(units), len(views), units.shape[1])
    there = np.broadcast_to(units[:, None] >= 0, shape).reshape(-1)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, shape).reshape(-1)[there]

    rows, number = spread(units[:, None]), np.arange(len(units), dtype=row_type(len(units)))
    return Order(
        rows=rows,
        shown=spread(np.arange(len(views), dtype=np.min_scalar_type(len(views)))[:, None]),
        units=spread(number[:, None, None]),
        streams=spread(streams[:, None, None]),
        bounds=batch_bounds(len(rows), batch_size),
        views=views,
    )


def row_type(rows: int) -> type[np.signedinteger[Any]]:
    """The integers that number so many rows."""
    return np.int32 if rows <= np.iinfo(np.int32).max else np.int64


def _lane_type(streams: int) -> type[np.signedinteger[Any]]:
    return np.int16 if streams <= np.iinfo(np.int16).max else row_type(streams)


def lane_count(blocks: int, batch_size: int, streams: int) -> int:
    """Lanes that make sense: no more than blocks, nor than rows in a batch."""
    return max(1, min(streams, blocks, batch_size))


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
