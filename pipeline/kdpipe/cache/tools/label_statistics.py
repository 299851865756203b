"""The teacher's outputs against the labels of its samples: confused classes and contradicted labels."""

from collections import Counter
from typing import Any

import numpy as np

from kdpipe.cache.cache import Cache
from kdpipe.cache.reader import require_match
from kdpipe.cache.tools.view_statistics import ViewStatistics
from kdpipe.errors import CacheError
from kdpipe.shards import Index
from kdpipe.views import View
from kdpipe.views.block import paired_index
from kdpipe.views.mixing import MixingDraws


class ViewLabels:
    """The labels of a cache's views, from an index of its samples.

    Raises:
        IdentityError: the index is of other samples or labels; the field is named.
        CacheError: it has fewer samples than the cache.
    """

    def __init__(self, cache: Cache, index: Index) -> None:
        self._config = cache.views_config
        there = {s["name"]: s["samples"] for s in cache.shards}
        self.index = index.limit(sum(there.values()))
        require_match(cache, self.index, self._config, None)
        self._shards = {shard.name: shard for shard in self.index.shards}
        if len(self.index) < sum(there.values()):
            raise CacheError(
                "the index has fewer samples than the cache",
                where=index.path,
                found=len(self.index),
                allowed=sum(there.values()),
                do="Use the index that it was cached from",
            )
        self._whole = paired_index(self.index, self._config)

    def own(self, shard: str, block: int) -> np.ndarray:
        """Labels of the samples of a shard's block, int64 (n,), -1 where there is none."""
        rows = self.index.rows(self._shards[shard].first_block + block)
        return self.index.labels[rows.start : rows.stop].astype(np.int64)

    def of(self, shard: str, block: int, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a view of a block, int64 (n,), as the cache has them, and whether it is mixed, bool (n,)."""
        own = self.own(shard, block)
        if not self._config.mixes or not isinstance(view, int):
            return own, np.zeros(len(own), bool)
        rows = self._whole.rows(self._shards[shard].first_block + block)
        draws = MixingDraws(self._config, shard, self._whole.keys(rows.start, rows.stop), view)
        labels = draws.labels(self._whole.labels[rows.start : rows.stop].astype(np.int64))
        return labels[: len(own)], draws.lam[: len(own)] != 1

    def key(self, shard: str, row: int) -> str:
        """The key of a shard's sample."""
        return self.index.key(self._shards[shard].first + row)


class LabelStatistics:
    """The unmixed views of a block's n labelled samples against the samples' own labels."""

    def __init__(self, labels: np.ndarray, num_classes: int) -> None:
        self.views, self.confusions = 0, Counter[tuple[int, int]]()
        self._labels, self._seen = labels, set[View]()
        self._total = np.zeros((len(labels), num_classes))
        self._count = np.zeros(len(labels))

    def add(self, view: View, outputs: ViewStatistics, mixed: np.ndarray) -> None:
        """Count a view; nothing if another encoding of it was."""
        if view in self._seen:
            return
        self._seen.add(view)
        counted = (self._labels >= 0) & ~mixed
        first = outputs.first[:, 0]
        wrong = counted & (first != self._labels)
        self.views += int(counted.sum())
        self.confusions.update(zip(self._labels[wrong].tolist(), first[wrong].tolist(), strict=True))
        outputs.add_to(self._total, counted.astype(np.float64))
        self._count += counted

    def worst(self, top: int) -> list[tuple[int, dict[str, Any]]]:
        """Row and facts of samples whose mean distribution contradicts their label, most confident first."""
        mean = self._total / np.maximum(self._count, 1)[:, None]
        predicted = mean.argmax(axis=1)
        p = mean[np.arange(len(mean)), predicted]
        wrong = np.flatnonzero((self._count > 0) & (predicted != self._labels))
        rows = wrong[np.argsort(-p[wrong], kind="stable")[:top]].tolist()
        return [
            (
                row,
                {
                    "label": int(self._labels[row]),
                    "predicted": int(predicted[row]),
                    "p": float(p[row]),
                    "p_label": float(mean[row, self._labels[row]]),
                    "views": int(self._count[row]),
                },
            )
            for row in rows
        ]
