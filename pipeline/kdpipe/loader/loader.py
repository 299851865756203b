"""The loader: batches of views with their targets, the same for any number of workers and processes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kdpipe.cache import CacheReader, MultiCacheReader
from kdpipe.errors import TargetsError, TrainingError
from kdpipe.loader.batch import Batch, join
from kdpipe.loader.blocks import RowBlocks
from kdpipe.loader.config import LoaderConfig
from kdpipe.loader.mixing_pairs import MixingPairs, pair_units
from kdpipe.loader.order import Order, epoch_order, lane_count, plain_order
from kdpipe.loader.schedule import views_of
from kdpipe.loader.worker import RowReader
from kdpipe.loader.worker_share import WorkerShare, known
from kdpipe.shards import Index
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import paired_index


class Loader:
    """Iterates epochs of an index.

    Args:
        index: the samples.
        config: the views' policy.
        size: render size, pixels.
        batch_size: rows of a batch over all processes.
        loader: see LoaderConfig.
        seed: of the order.
        cache: whose targets to deliver; None for none.
        rank, world: this process among how many.
        labelled_only: leave unlabelled samples out.
        evaluate: evaluation: each sample in these views, in index order; none for training.

    Raises:
        TrainingError: no sample to iterate over.
        TargetsError: the cache lacks the views that are needed.
    """

    def __init__(
        self,
        index: Index,
        config: ViewsConfig,
        size: int,
        batch_size: int,
        *,
        loader: LoaderConfig | None = None,
        seed: int = 0,
        cache: CacheReader | MultiCacheReader | None = None,
        rank: int = 0,
        world: int = 1,
        labelled_only: bool = False,
        evaluate: tuple[View, ...] = (),
    ) -> None:
        self.index, self.config, self.size, self.batch_size = index, config, size, batch_size
        self.loader = loader or LoaderConfig()
        self.seed, self.cache, self.rank, self.world, self.evaluate = seed, cache, rank, world, evaluate
        # Keys decide the draws, and only here is it seen whether the index still has the keys it was written with.
        index.verify()
        self._blocks = RowBlocks(index, labelled_only)
        if not self._blocks.rows:
            raise TrainingError("no labelled sample to train on", where=index.path)
        self._pairs = MixingPairs(paired_index(index, config), config, index.blocks)
        self._views = None if cache is None else [v for v in cache.views if isinstance(v, int)]
        missing = [] if cache is None else [v for v in evaluate if v not in cache.views]
        if cache is not None and missing:
            raise TargetsError(
                f"the view {missing[0]} is not cached",
                where=cache.url,
                do="Add it: kdpipe cache-teacher --views center, or five-crop",
            )
        if cache is not None and not evaluate and not self._views:
            raise TargetsError("no numbered view is cached", where=cache.url, found="center", do="Cache --views 0:4")
        unit = (2 if config.mixes else 1) * self.loader.views_per_decode
        if not evaluate and world > 1 and batch_size < world * unit:
            raise TrainingError(
                "a batch has no sample for some processes",
                where="train.batch_size",
                found=batch_size,
                allowed=f"at least {world * unit}: {world} processes, {unit} rows that stay together",
            )
        self._dataset = _Parts(self)
        self._pool: DataLoader | None = None

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self._blocks.rows

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return max(1, -(-len(self) // self.batch_size))

    @property
    def streams(self) -> int:
        """Lanes in use, which are part of a run's order and so of its checkpoint."""
        return lane_count(len(self._blocks), self.batch_size, self.loader.streams)

    def views(self, epoch: int) -> tuple[View, ...]:
        """The views that an epoch shows."""
        if self.evaluate:
            return self.evaluate
        together = self.loader.views_per_decode
        return views_of(epoch, self._views, self.loader.view_schedule, self.seed, together)

    def require_epochs(self, epochs: int) -> str | None:
        """Refuse now what would fail in a later epoch; returns a remark when cached views will repeat."""
        self.views(epochs - 1)
        if epochs % self.loader.views_per_decode:
            raise TrainingError(
                "the last pass would show only a part of the samples",
                where="loader.views_per_decode",
                found=f"{epochs} epochs, {self.loader.views_per_decode} of them a pass",
                allowed=f"epochs that are a multiple of {self.loader.views_per_decode}",
            )
        for epoch in range(0, epochs, self.loader.views_per_decode) if self.config.mixes else ():
            self._require_partners(self.views(epoch))
        if self._views is not None and epochs > len(self._views):
            return f"{len(self._views)} cached views for {epochs} epochs: views repeat, in a new order each time round"
        return None

    def labelled(self, epoch: int) -> int:
        """Rows of an epoch that have a label, which a mixed view has if both its samples have one."""
        return int(known(self.order(epoch), self._labels).sum())

    def order(self, epoch: int) -> Order:
        """The epoch's sequence over all processes."""
        views = self.views(epoch)
        if self.evaluate:
            return plain_order(np.concatenate(list(self._blocks)), self.batch_size, views)
        blocks: Sequence[np.ndarray] = self._blocks
        together = len(views)
        if self.config.mixes:
            paired = self._pairs.paired(int(views[0]))
            blocks = [pair_units(rows, paired) for rows in blocks]
        how = (self.batch_size, self.loader.streams, self.loader.window)
        order = epoch_order(blocks, self.seed, epoch // together, *how, views)
        if together > 1:
            # A pass over the samples in several views is as many epochs, each of as many rows as there are samples.
            start = epoch % together * len(self)
            order = order.part(start, start + len(self), self.batch_size)
        if not self.config.mixes:
            return order
        mixed = np.stack([self._pairs.mixed(int(view)) for view in views])
        return replace(order, partners=mixed[order.shown, order.rows])

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This process's part of each batch of an epoch, from `start_step` on."""
        if self.loader.workers == 0:
            for _, batch in self._dataset.parts(epoch, start_step, 0, 1):
                yield batch
            return
        self._dataset.position[:] = torch.tensor([epoch, start_step])
        if self._pool is None:
            # Workers outlive the epoch: they keep shards and arrays open, and starting them again takes seconds.
            self._pool = DataLoader(
                self._dataset, batch_size=None, num_workers=self.loader.workers, persistent_workers=True
            )
        parts: list[tuple[torch.Tensor, Batch]] = []
        # Torch takes from its workers in turn, so each run of `workers` items is one batch.
        for part in self._pool:
            parts.append(part)
            if len(parts) == self.loader.workers:
                yield join(parts, pin=torch.cuda.is_available())
                parts = []

    def close(self) -> None:
        """Stop the workers."""
        self._pool = None
        self._dataset.close()

    def _require_partners(self, views: tuple[View, ...]) -> None:
        groups = {int(v) // self.config.mix_every for v in views}
        if len(groups) > 1:
            raise TrainingError(
                "views_per_decode: these views mix a sample with different partners",
                where=f"views {', '.join(map(str, views))}",
                found=f"views.mix_every {self.config.mix_every}",
                allowed=f"a multiple of {len(views)}",
                do="Set views.mix_every (it changes the views, so cache again), or loader.views_per_decode=1",
            )

    @property
    def _labels(self) -> np.ndarray:
        return paired_index(self.index, self.config).labels

    def share(self, epoch: int, start: int, worker: int, workers: int) -> WorkerShare:
        """What one of this process's workers renders of an epoch, from step `start` on."""
        return WorkerShare.of(self.order(epoch), self._labels, self.rank, self.world, worker, workers, start)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}


class _Parts(IterableDataset):
    """What one worker of one process yields: for each batch, its positions and their rows."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        # Shared with the workers, which outlive an epoch: (epoch, first step) of the one that begins.
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._reader: RowReader | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Batch]]:
        info = get_worker_info()
        assert info is not None
        epoch, start = self.position.tolist()
        return self.parts(epoch, start, info.id, info.num_workers)

    def parts(self, epoch: int, start: int, worker: int, workers: int) -> Iterator[tuple[torch.Tensor, Batch]]:
        """Positions within this process's batch, and the rows there, for each step from `start` on."""
        loader = self._loader
        share = loader.share(epoch, start, worker, workers)
        if self._reader is None:
            self._reader = RowReader(loader.index, loader.config, loader.size, loader.cache)
        self._reader.begin(share.rows)
        for step in range(start, share.steps):
            # A copy: what a tensor is a view of would travel from a worker with it.
            places = share.places[share.at(step)].astype(np.int64)
            yield torch.from_numpy(places), self._reader.batch(share, epoch, step)

    def close(self) -> None:
        """Close the shards that this process opened."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}
