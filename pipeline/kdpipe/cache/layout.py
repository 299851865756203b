"""Names and shapes in a cache: which file is what.

zarr.json                                  root group: format and identity
canaries/pixels, canaries/labels.json      views as pixels
provenance.json                            where and with what it was made; never compared, in no digest
segments/<n>-<fields>-<views>/<field>/     Zarr arrays (view, shard, row, ...)
commits/store.json                         digests of zarr.json and the canaries
commits/<segment>/segment.json             the segment's spec, and digests of its zarr.json files
commits/<segment>/<shard>.json             one a finished task, written last
parts/<part>.safetensors                   the teacher's head and tail, calibrations of maps
commits/<part>.json                        a part's digest and what it is
locks/                                     where the store has no locks of its own: see `lease`; no part of the cache
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdpipe._util.fingerprint import fingerprint
from kdpipe.targets import Encoding
from kdpipe.views import FIVE_CROP, View

FORMAT = 1
ROOT = "zarr.json"
STORE_RECORD = "commits/store.json"
CANARY_LABELS = "canaries/labels.json"
CANARY_PIXELS = "canaries/pixels"
CANARY_CHUNK = f"{CANARY_PIXELS}/c/0/0/0/0"
# Files whose digests the store's record holds.
OF_STORE = (ROOT, f"canaries/{ROOT}", CANARY_LABELS, f"{CANARY_PIXELS}/{ROOT}", CANARY_CHUNK)
PROVENANCE = "provenance.json"
CALIBRATION = "calibration-"  # begins the name of such a part
# Inner chunks near this size: large enough for the codec, small enough to read one block.
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Segment:
    """A set of fields x a run of views x all shards, made in one way; immutable once committed.

    Attributes:
        number: position in the cache, 0 for the first.
        encoding: how targets lie in the arrays.
        views: consecutive numbers, or one evaluation view.
        numerics: how the teacher was run, see `Teacher.numerics`.
    """

    number: int
    encoding: Encoding
    views: tuple[View, ...]
    numerics: dict[str, Any]

    @cached_property
    def name(self) -> str:
        """Folder name, for example 000-top16-float16-v0-4."""
        return f"{self.number:03d}-{self.encoding.name}-{span(self.views)}"

    @property
    def record(self) -> str:
        """Path of the record that describes it."""
        return f"commits/{self.name}/segment.json"

    @property
    def metadata(self) -> tuple[str, ...]:
        """Paths of the zarr.json files whose digests its record holds."""
        folder = f"segments/{self.name}"
        arrays = (self.array(field.name) for field in self.encoding.fields())
        return tuple(f"{path}/{ROOT}" for path in ("segments", folder, *arrays))

    def commit(self, shard: str) -> str:
        """Path of the record of the task that did `shard`."""
        return f"commits/{self.name}/{shard}.json"

    def array(self, field: str) -> str:
        """Path of a field's array."""
        return f"segments/{self.name}/{field}"

    def chunk(self, field: str, shard: int) -> str:
        """Path of the one file that holds a field of a task (Zarr's default chunk keys)."""
        trailing = "/0" * (1 + len(self._tail(field)))
        return f"{self.array(field)}/c/0/{shard}{trailing}"

    def chunks(self, shard: int) -> tuple[str, ...]:
        """Paths of all files of a task."""
        return tuple(before + str(shard) + behind for before, behind in self._around)

    @cached_property
    def _around(self) -> tuple[tuple[str, str], ...]:
        """What stands before and behind the shard's position in `chunk`, by field."""
        return tuple((f"{self.array(f.name)}/c/0/", "/0" * (1 + len(f.shape))) for f in self.encoding.fields())

    def rows_a_chunk(self, field: str, block: int) -> int:
        """Rows in an inner chunk: a whole block unless that is beyond CHUNK_BYTES."""
        size = next(f for f in self.encoding.fields() if f.name == field).nbytes
        rows = block
        while rows > 1 and rows % 2 == 0 and rows * size > CHUNK_BYTES:
            rows //= 2
        return rows

    @cached_property
    def digest(self) -> str:
        """Of all that it is: what its name leaves out, a calibration and numerics, included."""
        return fingerprint(self.json())

    def owns(self, task: dict[str, Any]) -> bool:
        """Whether the record of a task of this name is of this segment.

        Where there are no locks, two runs may add segments of one name that differ. Records without the digest are
        older than it is.
        """
        return bool(task.get("segment_digest", self.digest) == self.digest)

    def _tail(self, field: str) -> tuple[int, ...]:
        return next(f.shape for f in self.encoding.fields() if f.name == field)

    def json(self) -> dict[str, Any]:
        """As recorded."""
        return {
            "number": self.number,
            "encoding": self.encoding.json(),
            "views": list(self.views),
            "numerics": self.numerics,
        }

    @classmethod
    def parse(cls, data: dict[str, Any]) -> "Segment":
        """From `json()`."""
        return cls(data["number"], Encoding.parse(data["encoding"]), tuple(data["views"]), data["numerics"])


def part_file(name: str) -> str:
    """Path of a part's tensors."""
    return f"parts/{name}.safetensors"


def part_record(name: str) -> str:
    """Path of a part's record."""
    return f"commits/{name}.json"


def part_named(record: str) -> str | None:
    """The part whose record has this path; None for other files."""
    folder, _, file = record.rpartition("/")
    is_part = folder == "commits" and file.endswith(".json") and record != STORE_RECORD
    return file.removesuffix(".json") if is_part else None


def span(views: tuple[View, ...]) -> str:
    """Views as part of a name: v0-4 (end exclusive, like in --views), or an evaluation view."""
    return f"v{views[0]}-{int(views[-1]) + 1}" if isinstance(views[0], int) else str(views[0])


def in_order(views: Iterable[View]) -> list[View]:
    """Numbers first, then evaluation views as they are named in FIVE_CROP."""
    there = set(views)
    return [*sorted(v for v in there if isinstance(v, int)), *(v for v in FIVE_CROP if v in there)]


def runs(views: list[View], most: int | None = None) -> Iterator[tuple[View, ...]]:
    """Views as tuples of consecutive numbers, `most` in each; evaluation views stand alone, last."""
    numbers = [v for v in in_order(views) if isinstance(v, int)]
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1 or i - start == most:
            yield tuple(numbers[start:i])
            start = i
    yield from ((v,) for v in in_order(views) if not isinstance(v, int))


def describe(views: list[View]) -> str:
    """Views for people, in the syntax of --views: 0:4,center."""
    return ",".join(f"{r[0]}:{int(r[-1]) + 1}" if isinstance(r[0], int) else str(r[0]) for r in runs(views))


def padded_rows(shards: list[dict[str, Any]], block: int) -> int:
    """Rows of every array of a cache: its longest shard, rounded up to whole blocks."""
    return -(-max(s["samples"] for s in shards) // block) * block


def fill_value(dtype: str) -> float | int:
    """What unwritten rows read as: infinity, an index no class has, a step no feature takes. Nothing stored equals it.

    So chunks of padding are left out of a file, and chunks of data never are, even if they are all NaN without labels.
    """
    if dtype.startswith("float"):
        return float("inf")
    limits = np.iinfo(dtype)
    return int(limits.min if dtype == "int8" else limits.max)
