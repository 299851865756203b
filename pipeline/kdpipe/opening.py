"""Arguments of the functions of `import kdpipe`: indexes, caches, paths and settings, checked when they are passed."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from kdpipe.cache import CacheReader, CacheRequest, MultiCacheReader, Store
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.manifest import CacheRecord, open_reader
from kdpipe.caching.identity import check_readers_canaries
from kdpipe.config import config_error, first_problem
from kdpipe.errors import CacheError, ConfigError
from kdpipe.shards import Index
from kdpipe.views import ViewsConfig
from kdpipe.views.canaries import CanaryTolerance

PathLike = str | os.PathLike[str]
Settings = Mapping[str, Any]
_log = logging.getLogger("kdpipe")


def open_index(path: PathLike) -> Index:
    """Open an index that `build_index` or `kdpipe index` made.

    Raises:
        IndexFileError: no index there, damaged, or of another format version.
        ConfigError: not a path.
    """
    return as_index(path)


def open_cache(
    url: PathLike,
    index: Index | PathLike | None = None,
    *,
    views: ViewsConfig | Settings | None = None,
    want: CacheRequest | None = None,
    canary_tolerance: CanaryTolerance = 0,
    trust: Sequence[str] = (),
) -> CacheReader:
    """Open a cache for training on the samples of an index, and check that its views look the same here.

    Args:
        url: the cache, a folder or fsspec URL; or a file that `kdpipe cache-teacher --manifest` wrote.
        index: the samples, which may be a part of the cache's; by default the index with which it was made.
        views: the policy, which must be the cache's own; by default the cache's own.
        want: what to read; by default log-probabilities.
        canary_tolerance: levels of 255 by which the cache's reference views may differ when rendered here.
        trust: names of code that the cache may give, see docs/security.md.

    Raises:
        CacheError: no cache there, it is damaged, or no view is complete for these samples.
        IdentityError: the cache is of other samples, views or labels; the field is named.
        TargetsError: it keeps too little for `want`.
        ViewError: its reference views look different here.
    """
    where = path_of("cache", url)
    samples = _index_of(where) if index is None else as_index(index)
    policy = None if views is None else configured(ViewsConfig, views, "views")
    reader = open_reader(where, samples, policy, request=want, trust=tuple(trust))
    check_readers_canaries(
        reader.cache, samples, reader.config, canary_tolerance, required=canary_tolerance > 0, log=_log.warning
    )
    return reader


def as_index(index: Any) -> Index:
    """An index, or the one at a path."""
    return index if isinstance(index, Index) else Index.open(path_of("index", index))


def as_cache(cache: Any, index: Index) -> CacheReader | MultiCacheReader:
    """An open cache, or the one at a path, opened for these samples."""
    return cache if isinstance(cache, CacheReader | MultiCacheReader) else open_cache(path_of("cache", cache), index)


def path_of(name: str, value: Any) -> str:
    """An argument that is a path or URL, as a string, or ConfigError."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError("not a path", where=name, found=f"{type(value).__name__} {value!r}", allowed="a path")
    return os.fspath(value)


def settings_of(kind: Any, settings: Any, where: str) -> Any:
    """A config from an argument: such a config, a dict of its fields, or None for the defaults; else ConfigError."""
    if settings is None or isinstance(settings, kind | Mapping):
        if isinstance(settings, Mapping):
            settings = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in settings.items()}
        return configured(kind, {} if settings is None else settings, where)
    allowed = f"a {kind.__name__} or a dict of its fields"
    raise ConfigError("not settings", where=where, found=f"{type(settings).__name__} {settings!r}", allowed=allowed)


def _index_of(where: str) -> Index:
    """The index with which a cache was made."""
    store = Store(CacheRecord.read(where).cache if where.endswith(".json") else where)
    runs = read_provenance(store)
    if not runs or "shards" not in runs[-1]:
        raise CacheError("the index with which it was made is unknown", where=store, do="Pass index")
    return Index.open(runs[-1]["shards"]).limit(runs[-1]["samples"])


def configured(kind: Any, settings: Any, where: str) -> Any:
    """A config from its settings, or a ConfigError of one line; a config of this kind as it is."""
    if isinstance(settings, kind):
        return settings
    try:
        return kind.model_validate(settings)
    except ValidationError as e:
        key = first_problem(e)[0]
        raise config_error(e, kind, f"{where}: {key}" if key else where) from e


def whole(name: str, value: Any, least: int) -> int:
    """An argument that is a whole number, or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError("not a whole number in range", where=name, found=repr(value), allowed=f"{least} or more")
    return value
