"""Reading rows of committed tasks, from wherever in a segment they lie."""

from typing import Any

import numpy as np

from kdpipe.cache.cache import Cache
from kdpipe.cache.chunks import ChecksumError, TaskFile
from kdpipe.cache.layout import Segment, padded_rows
from kdpipe.cache.store import Store
from kdpipe.errors import CorruptionError
from kdpipe.targets import ArrayField
from kdpipe.views import View


class ArrayReader:
    """Reads rows of committed tasks; picklable, opens files lazily in each process."""

    def __init__(self, cache: Cache) -> None:
        self.url = cache.store.url
        self._position = {s["name"]: i for i, s in enumerate(cache.shards)}
        self._samples = [int(s["samples"]) for s in cache.shards]
        self._block = int(cache.identity["block_size"])
        self._rows = padded_rows(cache.shards, self._block)
        self._bytes = {
            name: entry["bytes"] for record in cache.commits.values() for name, entry in record["files"].items()
        }
        self._files: dict[str, TaskFile] = {}
        self._store: Store | None = None

    def read(
        self,
        segment: Segment,
        shard: str,
        view: View,
        start: int,
        stop: int,
        fields: tuple[ArrayField, ...] | None = None,
    ) -> dict[str, np.ndarray]:
        """Rows [start, stop) of one shard's view: by field name, (stop - start, ...) in stored dtypes.

        `fields` are some of the segment's; all of them by default.

        Raises:
            CorruptionError: a stored chunk is not what was written; names file, view and rows.
        """
        at, position = segment.views.index(view), self._position[shard]
        out = {}
        for field in segment.encoding.fields() if fields is None else fields:
            name = segment.chunk(field.name, position)
            try:
                out[field.name] = self._file(segment, field, name, position).read(at, start, stop)
            except ChecksumError as e:
                raise self._damaged(name, str(e), f"view {view} rows {start}:{stop}") from e
        return out

    def _file(self, segment: Segment, field: ArrayField, name: str, position: int) -> TaskFile:
        """The file of a field of a task. Its size is checked when it is first touched."""
        if name not in self._files:
            self._store = self._store or Store(self.url)
            size = self._store.size(name)
            if size != self._bytes[name]:
                raise self._damaged(name, "its size is wrong", f"{size} bytes instead of {self._bytes[name]}")
            sizes = {"rows": self._rows, "samples": self._samples[position], "block": self._block}
            self._files[name] = TaskFile(self._store, name, self._bytes[name], segment, field, **sizes)
        return self._files[name]

    def _damaged(self, name: str, what: str, found: str) -> CorruptionError:
        return CorruptionError(
            f"a chunk of the cache is damaged: {what}",
            where=f"{self.url}/{name}",
            found=found,
            do="kdpipe verify lists all damage; delete the damaged tasks' records and repeat kdpipe cache-teacher",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_store": None}
