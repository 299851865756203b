"""Reading targets: which views a training run may use, and one block's rows at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cache.cache import Cache, require_identity
from pipeline.cache.chunks import ChecksumError, TaskFile
from pipeline.cache.layout import Segment, in_order, padded_rows
from pipeline.cache.store import Store
from pipeline.errors import CacheError, CorruptionError, IdentityError, TargetsError
from pipeline.shards import Index
from pipeline.targets import ArrayField, Encoding
from pipeline.views import View, ViewsConfig


@dataclass(frozen=True)
class Selection:
    """One encoding of a cache and the views that are complete in it: segment by view."""

    encoding: Encoding
    segments: dict[View, Segment]

    @property
    def views(self) -> list[View]:
        """Numbers in order, then evaluation views."""
        return in_order(self.segments)


class ArrayReader:
    """Reads rows of committed tasks; picklable, opens files lazily in each process."""

    def __init__(self, cache: Cache) -> None:
        self.url = cache.store.url
        self._position = {s["name"]: i for i, s in enumerate(cache.shards)}
        self._block = int(cache.identity["block_size"])
        self._rows = padded_rows(cache.shards, self._block)
        self._bytes = {
            name: entry["bytes"] for record in cache.commits.values() for name, entry in record["files"].items()
        }
        self._files: dict[str, TaskFile] = {}
        self._store: Store | None = None

    def read(self, segment: Segment, shard: str, view: View, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of one shard's view: by field name, (stop - start, ...) in stored dtypes.

        Raises:
            CorruptionError: a stored chunk is not what was written; names file, view and rows.
        """
        at, position = segment.views.index(view), self._position[shard]
        out = {}
        for field in segment.encoding.fields():
            name = segment.chunk(field.name, position)
            try:
                out[field.name] = self._file(segment, field, name).read(at, start, stop)
            except (ChecksumError, RuntimeError) as e:
                raise self._damaged(name, "its checksum", f"view {view} rows {start}:{stop}") from e
        return out

    def _file(self, segment: Segment, field: ArrayField, name: str) -> TaskFile:
        """The file of a field of a task. Its size is checked when it is first touched."""
        if name not in self._files:
            self._store = self._store or Store(self.url)
            size = self._store.size(name)
            if size != self._bytes[name]:
                raise self._damaged(name, "its size", f"{size} bytes instead of {self._bytes[name]}")
            self._files[name] = TaskFile(self._store, name, self._bytes[name], segment, field, self._rows, self._block)
        return self._files[name]

    def _damaged(self, name: str, what: str, found: str) -> CorruptionError:
        return CorruptionError(
            f"a chunk of the cache is damaged: {what} is wrong",
            where=f"{self.url}/{name}",
            found=found,
            do="kdpipe verify lists all damage; delete the damaged tasks' records and repeat kdpipe cache-teacher",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_store": None}


class CacheReader:
    """Reads the targets of an index's samples; picklable.

    Args:
        url: the cache.
        index: the samples; a limited index reads a part of the cache.
        views: the policy, which must be the cache's own; None to take the cache's word for it.
        dense: whether every class's value is needed rather than the top k.
        num_classes: the student's; must be the teacher's.

    Raises:
        IdentityError: the cache is of other pixels, draws, labels or classes; the field is named.
        CacheError: no view is complete for all of the index's shards.
        TargetsError: the cache keeps too little for what is asked.
    """

    def __init__(
        self,
        url: str,
        index: Index,
        views: ViewsConfig | None = None,
        *,
        dense: bool = False,
        num_classes: int | None = None,
    ) -> None:
        self.url = url
        self.cache = Cache(Store(url))
        self.config = views or self.cache.views_config
        require_match(self.cache, index, self.config, num_classes)
        self.selection = select(self.cache, [shard.name for shard in index.shards], dense)
        self._arrays = ArrayReader(self.cache)

    @property
    def encoding(self) -> Encoding:
        """How the targets are encoded; its `decode` turns a batch's fields into Targets."""
        return self.selection.encoding

    @property
    def views(self) -> list[View]:
        """Views that can be read for every sample of the index."""
        return self.selection.views

    def read(self, shard: str, view: View, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of one shard's view; see `ArrayReader.read`."""
        return self._arrays.read(self.selection.segments[view], shard, view, start, stop)


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
    if num_classes is not None:
        mine["num_classes"], other["num_classes"] = num_classes, cache.num_classes
    require_identity(cache.store, mine, other)


def select(cache: Cache, shards: list[str], dense: bool) -> Selection:
    """The encoding with most complete views that serves what is asked; the smaller one among equals."""
    found: dict[Encoding, dict[View, Segment]] = {}
    for segment in cache.segments:
        if cache.complete(segment, shards):
            for view in segment.views:
                found.setdefault(segment.encoding, {}).setdefault(view, segment)
    if not found:
        missing = [n for n in shards if not any((s.name, n) in cache.commits for s in cache.segments)]
        raise CacheError(
            "no view is cached for all the shards",
            where=cache.store,
            found=f"{len(shards) - len(missing)} of {len(shards)} shards begun",
            do="Repeat kdpipe cache-teacher, which resumes, or train on an index of the finished shards",
        )
    fit = {e: v for e, v in found.items() if e.dense or not dense}
    if not fit:
        names = ", ".join(sorted(e.name for e in found))
        raise TargetsError(
            "this objective needs every class and the cache keeps the top k",
            where=cache.store,
            found=names,
            do="Cache dense targets: kdpipe cache-teacher --targets dense, or use temperature 1",
        )
    best = max(fit, key=lambda e: (len(fit[e]), -e.k, e.dtype == "float16"))
    return Selection(best, fit[best])
