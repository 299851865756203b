"""A small file that names cached targets: where they are, which, and a digest of them.

A store outlives its users: it gets more views and encodings, and others read it meanwhile. A run that trains from a
record reads exactly the targets of that time, whatever was added since.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kdpipe._util.files import atomic_write
from kdpipe._util.fingerprint import fingerprint
from kdpipe._util.redact import bare_url
from kdpipe._util.untrusted import load_json
from kdpipe.cache.cache import Cache, record_digest
from kdpipe.cache.layout import Segment, in_order
from kdpipe.cache.modules import needed
from kdpipe.cache.reader import CacheReader
from kdpipe.cache.schema import validated
from kdpipe.cache.schemas import CacheRecordFile
from kdpipe.cache.sealed import JSON_BYTES
from kdpipe.cache.select import CacheRequest
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError, CorruptionError, IdentityError, TargetsError
from kdpipe.shards import Index
from kdpipe.targets import Encoding, Quality
from kdpipe.views import View, ViewsConfig

PLACE = "{identity}"
_SUFFIX = ".json"


@dataclass(frozen=True)
class CacheRecord:
    """What a cache holds of some views. No path but the cache's own, no time, no host.

    Attributes:
        cache: folder or URL of the store, without user, password and query.
        teacher: its name.
        identity: digest of what it is a cache of.
        encoding: of the targets, as `Encoding.json`.
        views: those, numbers first.
        root: digest over identity and the finished tasks that hold them; equal for equal content.
        samples: of the cache.
        bytes: stored, of those tasks.
        quality: of those tasks, as `Quality.means`.
    """

    cache: str
    teacher: str
    identity: str
    encoding: dict[str, Any]
    views: list[View]
    root: str
    samples: int
    bytes: int
    quality: dict[str, Any]

    @classmethod
    def of(cls, cache: Cache, encoding: Encoding, views: list[View]) -> Self:
        """Describe these views in this encoding."""
        segments = _segments(cache, encoding, views)
        quality = Quality()
        for segment in segments:
            quality.add(cache.quality(segment))
        return cls(
            cache=bare_url(cache.store.url),
            teacher=str(cache.identity["teacher"]["model"]),
            identity=fingerprint(cache.identity),
            encoding=encoding.json(),
            views=in_order(views),
            root=_root(cache, segments),
            samples=sum(shard["samples"] for shard in cache.shards),
            bytes=sum(cache.bytes(segment) for segment in segments),
            quality=quality.means(),
        )

    def write(self, path: str) -> None:
        """Leave it as JSON, the folder made if need be.

        Raises:
            CacheError: it can't be written.
        """
        try:
            with atomic_write(Path(path).absolute()) as partial:
                partial.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")
        except OSError as e:
            raise CacheError(f"can't be written: {e.strerror}", where=path, do="Choose another --manifest") from e

    @classmethod
    def read(cls, path: str) -> Self:
        """Read what `write` wrote.

        Raises:
            CacheError: not there, or no record.
        """
        try:
            with Path(path).open("rb") as file:
                content = load_json(file.read(JSON_BYTES))
            validated(CacheRecordFile, content, path)
        except (OSError, ValueError, CorruptionError) as e:
            do = "Make one with kdpipe cache-teacher --manifest, or name the cache itself"
            found = e.what if isinstance(e, CorruptionError) else None
            raise CacheError("no record of a cache", where=path, found=found, do=do) from e
        return cls(**content)


def place(out: str, identity: dict[str, Any]) -> str:
    """`out` with {identity} replaced by the first 16 hex digits of the identity's digest."""
    return out.replace(PLACE, fingerprint(identity)[:16])


def cached_views(where: str) -> ViewsConfig:
    """The policy of the views in a cache, or in the one that a record (a name that ends in .json) describes.

    Raises:
        CacheError, IdentityError: there is no cache, or it is of another release's views.
    """
    url = CacheRecord.read(where).cache if where.endswith(_SUFFIX) else where
    return Cache(Store(url)).views_config


def open_reader(
    where: str,
    index: Index,
    views: ViewsConfig | None = None,
    *,
    request: CacheRequest | None = None,
    num_classes: int | None = None,
    resumed: list[dict[str, Any]] | None = None,
    trust: tuple[str, ...] = (),
) -> CacheReader:
    """A reader of a cache, or of the targets that a manifest (a name that ends in .json) names.

    Arguments are those of `CacheReader`.

    Raises:
        CacheError, IdentityError, TargetsError: as `CacheReader`, or the store doesn't match the manifest.
    """
    if not where.endswith(_SUFFIX):
        return CacheReader(where, index, views, request=request, num_classes=num_classes, resumed=resumed, trust=trust)
    named = CacheRecord.read(where)
    encoding = Encoding.parse(named.encoding)
    try:
        reader = CacheReader(
            named.cache, index, views, request=request, num_classes=num_classes, only=encoding, trust=trust
        )
    except TargetsError as e:
        do = (
            f"A record is of one run of kdpipe cache-teacher: write one of a run with all fields, or pass {named.cache}"
        )
        raise TargetsError(e.what, where=where, found=e.found, allowed=e.allowed, do=do) from e
    segments = _segments(reader.cache, encoding, named.views)
    if fingerprint(reader.cache.identity) != named.identity or _root(reader.cache, segments) != named.root:
        raise IdentityError(
            "the cache holds other targets than its record names",
            where=where,
            found=named.cache,
            do="Repeat the kdpipe cache-teacher that wrote the record",
        )
    reader.keep(named.views)
    return reader


def _segments(cache: Cache, encoding: Encoding, views: list[View]) -> list[Segment]:
    return [s for s in cache.segments if s.encoding == encoding and set(s.views) & set(views)]


def _root(cache: Cache, segments: list[Segment]) -> str:
    names = {segment.name for segment in segments}
    commits = {f"{n}/{shard}": record_digest(record) for (n, shard), record in cache.commits.items() if n in names}
    # A calibration decides what a map is read as.
    parts = {name: record_digest(cache.parts[name]) for name in needed(segments) if name in cache.parts}
    return fingerprint({"identity": cache.identity, "commits": commits} | ({"parts": parts} if parts else {}))
