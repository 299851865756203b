"""Caches of several teachers over the same views, read as one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kdpipe.cache.layout import describe
from kdpipe.cache.reader import CacheReader
from kdpipe.errors import IdentityError
from kdpipe.targets import ArrayField, Targets
from kdpipe.views import View


class MultiCacheReader:
    """Rows of several caches; picklable. Field names are preceded by the reader's number.

    Args:
        readers: one a teacher, in the user's order; each was matched with the same index and views.

    Raises:
        IdentityError: they hold other numbered views, or classes. Evaluation views may be there in some alone.
    """

    def __init__(self, readers: Sequence[CacheReader]) -> None:
        self.readers = tuple(readers)
        first = self.readers[0]
        for reader in self.readers[1:]:
            found, expected = _numbered(reader), _numbered(first)
            if found != expected:
                raise IdentityError(
                    "the caches hold different views",
                    where=reader.url,
                    found=describe(found),
                    allowed=f"{describe(expected)} as {first.url}",
                    do="Cache the missing ones: kdpipe cache-teacher --views",
                )
            if reader.num_classes != first.num_classes:
                raise IdentityError(
                    "the caches are of teachers with different numbers of classes",
                    where=reader.url,
                    found=reader.num_classes,
                    allowed=first.num_classes,
                )

    @property
    def url(self) -> str:
        """Of all, for messages."""
        return ", ".join(reader.url for reader in self.readers)

    @property
    def views(self) -> list[View]:
        """Views that can be read for every sample of the index, of every teacher."""
        others = [reader.views for reader in self.readers[1:]]
        return [view for view in self.readers[0].views if all(view in views for views in others)]

    @property
    def fields(self) -> tuple[ArrayField, ...]:
        """The arrays of which `read` gives rows."""
        return tuple(replace(f, name=f"{i}/{f.name}") for i, reader in enumerate(self.readers) for f in reader.fields)

    def read(self, shard: str, view: View, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of one shard's view, by field."""
        rows: dict[str, np.ndarray] = {}
        for i, reader in enumerate(self.readers):
            rows |= {f"{i}/{name}": array for name, array in reader.read(shard, view, start, stop).items()}
        return rows

    def decode(self, fields: dict[str, Any]) -> tuple[Targets, ...]:
        """Rows as `read` gives them -> Targets of each teacher."""
        own: list[dict[str, Any]] = [{} for _ in self.readers]
        for name, rows in fields.items():
            number, _, field = name.partition("/")
            own[int(number)][field] = rows
        return tuple(reader.decode(rows) for reader, rows in zip(self.readers, own, strict=True))


def _numbered(reader: CacheReader) -> list[View]:
    return [view for view in reader.views if isinstance(view, int)]
