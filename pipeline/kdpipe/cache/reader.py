"""What a training run reads of a cache: checked against its samples, chosen by what it needs, decoded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.cache.cache import CLASS_NAMES, Cache, require_identity
from kdpipe.cache.modules import read_calibration, read_part
from kdpipe.cache.read import ArrayReader
from kdpipe.cache.select import HEAD, TAIL, CacheRequest, ViewSource, select
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError, IdentityError
from kdpipe.shards import Index
from kdpipe.targets import ArrayField, Calibration, Encoding, Targets
from kdpipe.views import View, ViewsConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdpipe.teacher import Tail


class CacheReader:
    """Reads the targets of an index's samples; picklable.

    Args:
        url: the cache.
        index: the samples; a limited index reads a part of the cache.
        views: the policy, which must be the cache's own; None to use the cache's.
        request: what to read; log-probabilities by default.
        num_classes: the student's; must be the teacher's.
        only: the encoding to read from, where a record names it.
        resumed: what the resumed run reads, see `select`.
        trust: which names of models its parts may give, see `require_trusted`.

    Raises:
        IdentityError: the cache is of other pixels, draws, labels or classes; the field is named.
        CacheError: no view is complete for all of the index's shards.
        TargetsError: the cache keeps too little for the request.
    """

    def __init__(
        self,
        url: str,
        index: Index,
        views: ViewsConfig | None = None,
        *,
        request: CacheRequest | None = None,
        num_classes: int | None = None,
        only: Encoding | None = None,
        resumed: list[dict[str, Any]] | None = None,
        trust: tuple[str, ...] = (),
    ) -> None:
        self.url, self._trust = url, trust
        self.cache = Cache(Store(url))
        self.config = views or self.cache.views_config
        require_match(self.cache, index, self.config, num_classes)
        self.request = request or CacheRequest()
        self.selection = select(self.cache, [shard.name for shard in index.shards], self.request, only, resumed)
        self._arrays = ArrayReader(self.cache)
        self._parts: dict[str, Any] = {}

    @property
    def encoding(self) -> Encoding:
        """How the log-probabilities are encoded; where they are not read, what else is read."""
        return self.selection.logits or self.selection.sources[0].encoding

    @property
    def num_classes(self) -> int:
        """Of the teacher."""
        return self.cache.num_classes

    @property
    def views(self) -> list[View]:
        """Views that can be read for every sample of the index."""
        return self.selection.views

    @property
    def fields(self) -> tuple[ArrayField, ...]:
        """The arrays of which `read` gives rows."""
        return tuple(field for source in self.selection.sources for field in source.fields)

    def keep(self, views: list[View]) -> None:
        """Drop all other views than these."""
        kept = [
            replace(source, segments={v: s for v, s in source.segments.items() if v in views})
            for source in self.selection.sources
        ]
        self.selection = replace(self.selection, sources=tuple(kept))

    def read(self, shard: str, view: View, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of one shard's view, by field; see `ArrayReader.read`."""
        rows: dict[str, np.ndarray] = {}
        for source in self.selection.sources:
            rows |= self._arrays.read(source.segments[view], shard, view, start, stop, source.fields)
        return rows

    def decode(self, fields: dict[str, torch.Tensor]) -> Targets:
        """Rows as `read` gives them -> Targets, on the device where they are."""
        found: dict[str, Any] = {}
        for source in self.selection.sources:
            own = {field.name: fields[field.name] for field in source.fields}
            decoded = vars(source.encoding.decode(own, self.calibration(source)))
            found |= {name: value for name, value in decoded.items() if value is not None and value is not False}
        if self.selection.by_head:
            pooled = found["pooled"]
            import torch

            with torch.autocast(pooled.device.type, enabled=False):
                logits = self.head.to(pooled.device)(pooled)
            found |= {"log_probs": logits.log_softmax(dim=1), "dense": True}
            if not self.request.pooled:
                del found["pooled"]
        return Targets(**found)

    @property
    def _weights(self) -> str:
        return str(self.cache.identity["teacher"]["weights"])

    @property
    def head(self) -> nn.Linear:
        """The teacher's classifier, frozen, checked on its probes.

        Raises:
            IdentityError: it is another teacher's, or its outputs on its probes aren't those stored.
            CacheError: its file is damaged.
        """
        if HEAD not in self._parts:
            from kdpipe.teacher import load_head

            tensors, about = read_part(self.cache, HEAD)
            if about["teacher"] != self._weights:
                raise IdentityError(
                    "the head is another teacher's",
                    where=f"{self.url} part {HEAD}",
                    found=about["teacher"],
                    allowed=self._weights,
                    do="Delete its record, and repeat the kdpipe cache-teacher that made the cache",
                )
            self._parts[HEAD] = load_head(tensors, f"{self.url} part {HEAD}")
        head: nn.Linear = self._parts[HEAD]
        return head

    @property
    def tail(self) -> Tail:
        """The teacher's last stage, frozen, checked on its probes; raises as `head`."""
        if TAIL not in self._parts:
            from kdpipe.teacher import load_tail

            tensors, about = read_part(self.cache, TAIL)
            where = f"{self.url} part {TAIL}"
            self._parts[TAIL] = load_tail(tensors, about, where, self._weights, self._trust)
        tail: Tail = self._parts[TAIL]
        return tail

    def calibration(self, source: ViewSource | None = None) -> Calibration | None:
        """Statistics and basis of the map that a source, by default any, has; None where none is read."""
        for one in self.selection.sources if source is None else (source,):
            feature = one.encoding.map
            if "map" in one.groups and feature is not None and feature.calibration is not None:
                if feature.calibration not in self._parts:
                    self._parts[feature.calibration] = read_calibration(self.cache, one.encoding)
                found: Calibration = self._parts[feature.calibration]
                return found
        return None

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes read rows; what decodes them stays here.
        return {**self.__dict__, "_parts": {}}


def require_match(cache: Cache, index: Index, views: ViewsConfig, num_classes: int | None) -> None:
    """Raise IdentityError unless the cache is of these samples, draws and classes. Paths play no part."""
    cached = {s["name"]: s for s in cache.shards}
    absent = [shard.name for shard in index.shards if shard.name not in cached]
    if absent:
        raise IdentityError(
            f"the cache was made without {len(absent)} of the index's {len(index.shards)} shards",
            where=cache.store,
            found=absent[0],
            allowed=f"{cache.shards[0]['name']} to {cache.shards[-1]['name']}",
            do="Use the index, and the --limit, that it was cached with",
        )
    ours, theirs = [], []
    full = {shard.name: shard for shard in index.full.shards}
    for shard in index.shards:
        there, whole = cached[shard.name], full[shard.name]
        # Compare over the rows that the cache holds; a training run may use fewer, not more.
        ours.append(index.shard_identity(whole, min(there["samples"], whole.samples)))
        theirs.append(there)
        if shard.samples > there["samples"]:
            raise CacheError(
                "the cache holds fewer samples of a shard than the index",
                where=f"{cache.store} shard {shard.name}",
                found=there["samples"],
                allowed=f"at least {shard.samples}",
                do="Train with the --limit that the cache was made with, or cache the rest",
            )
    mine = {"block_size": index.block_size, "views": views.identity(), "shards": ours}
    other = {"block_size": cache.identity["block_size"], "views": cache.identity["views"], "shards": theirs}
    if index.classes is not None and cache.classes is not None:
        mine[CLASS_NAMES], other[CLASS_NAMES] = index.classes, cache.classes
    if num_classes is not None:
        mine["num_classes"], other["num_classes"] = num_classes, cache.num_classes
    require_identity(cache.store, mine, other)
