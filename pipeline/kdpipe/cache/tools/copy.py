"""Finished tasks on their way to another segment or another cache; no stored value changes.

A task's files lie in it by its segment's views and its cache's padded rows. Where both are the same on the
other side, bytes are copied; where not, values are read and written again, which gives the bytes that caching them
there would have given.
"""

from collections.abc import Callable, Sequence

import numpy as np

from kdpipe._util.fingerprint import sha256
from kdpipe.cache.cache import Cache
from kdpipe.cache.commit import commit_files
from kdpipe.cache.layout import Segment, padded_rows
from kdpipe.cache.read import ArrayReader
from kdpipe.cache.store import Store
from kdpipe.errors import CorruptionError
from kdpipe.targets import Quality
from kdpipe.views import View

# Called with (tasks done, tasks to do): once with 0 done, then after each.
OnTask = Callable[[int, int], None]


class CopySource:
    """The finished tasks of an open cache, to be copied."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._arrays = ArrayReader(cache)
        self._position = {s["name"]: i for i, s in enumerate(cache.shards)}
        self._rows = rows_of(cache)

    def copy(self, segment: Segment, shard: str, target: Cache, into: Segment, *, digests: bool = True) -> int:
        """Commit a task of `segment` in the segment `into` of `target`; its stored bytes there.

        Args:
            segment, shard: the finished task here.
            target, into: where it goes. The views of `into` are some or all of those of `segment`.
            digests: whether files that are read in part are checked whole before. Without, only the chunks that
                are needed are read, each under its own checksum. Files that are copied are always checked.

        Raises:
            CorruptionError: a file here has not the bytes that were committed; it is named.
        """
        record = self.cache.commits[segment.name, shard]
        here = self._position[shard]
        there = next(i for i, s in enumerate(target.shards) if s["name"] == shard)
        quality = Quality(**record["quality"])
        if into.views == segment.views and rows_of(target) == self._rows:
            files = {}
            for field in segment.encoding.fields():
                name = segment.chunk(field.name, here)
                data = read_checked(self.cache.store, name, record["files"][name]["sha256"])
                files[into.chunk(field.name, there)] = data
        else:
            if digests:
                for name, entry in record["files"].items():
                    read_checked(self.cache.store, name, entry["sha256"])
            from kdpipe.cache.arrays import task_files

            files = task_files(target, into, there, self._read(segment, shard, into.views))
            quality = quality.part(len(into.views), len(segment.views))
        committed = commit_files(target, into, there, files, quality)
        return sum(int(entry["bytes"]) for entry in committed["files"].values())

    def _read(self, segment: Segment, shard: str, views: Sequence[View]) -> dict[str, np.ndarray]:
        """Views of a task by field name: (views, samples, ...)."""
        samples = self.cache.shards[self._position[shard]]["samples"]
        parts = [self._arrays.read(segment, shard, view, 0, samples) for view in views]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def rows_of(cache: Cache) -> int:
    """Padded rows of a cache's arrays."""
    return padded_rows(cache.shards, int(cache.identity["block_size"]))


def read_checked(store: Store, name: str, digest: str) -> bytes:
    """A file that must have this sha256.

    Raises:
        CorruptionError: it has another one.
        CacheError: it is missing.
    """
    data = store.read(name)
    if sha256(data) != digest:
        raise CorruptionError(
            "its bytes are not those that were committed (sha256 differs)",
            where=f"{store}/{name}",
            do="kdpipe verify lists all damage; delete the damaged tasks' records and repeat kdpipe cache-teacher",
        )
    return data
