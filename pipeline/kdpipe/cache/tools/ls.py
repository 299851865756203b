"""Which caches lie below a folder, and a summary of each."""

import json
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from kdpipe._util.fingerprint import fingerprint
from kdpipe._util.untrusted import load_json
from kdpipe.cache.cache import Cache
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import ROOT, describe
from kdpipe.cache.names import is_plain
from kdpipe.cache.sealed import JSON_BYTES
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError, KdpipeError
from kdpipe.views import ViewsConfig


def find_caches(place: str) -> Iterator[str]:
    """Addresses of the caches at or below a folder or URL, by name; those half made or half deleted included.

    Raises:
        CacheError: there is no such folder, or it can't be read.
    """
    top = Store(place)
    fs, root = fsspec.core.url_to_fs(top.url)
    base = top.url if top.url.endswith("://") else f"{top.url.rstrip('/')}/"
    if not top.exists(""):
        raise CacheError("no such folder", where=place)
    fs.invalidate_cache()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = base + below if below else place
        try:
            entries = fs.ls(f"{root.rstrip('/')}/{below}" if below else root, detail=True)
        except Exception as e:
            raise CacheError(f"can't be read: {getattr(e, 'strerror', None) or e}", where=folder) from e
        names = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}
        if ROOT in names and is_cache(Store(folder)):
            yield folder
            continue
        # A link may lead back up.
        folders = [n for n, entry in names.items() if entry["type"] == "directory" and not entry.get("islink")]
        waiting += [f"{below}/{name}" if below else name for name in sorted(folders, reverse=True) if is_plain(name)]


def is_cache(store: Store) -> bool:
    """Whether the root is that of a cache of kdpipe's, whole or not."""
    try:
        return "kdpipe" in dict(load_json(store.read(ROOT, JSON_BYTES))["attributes"])
    except (CacheError, ValueError, KeyError, TypeError):
        return False


def place_of(url: str) -> str:
    """One spelling of each place: the real path of a local folder, a URL without a slash at its end."""
    plain = url.removeprefix("file://")
    return plain.rstrip("/") if "://" in plain else os.path.realpath(plain)


def summarise(url: str) -> dict[str, Any]:
    """The summary of one cache, JSON-able.

    Returns:
        `cache`; `problem`: None, or why it can't be opened, and then nothing else is there. `identity`: a digest of
        it; `teacher`, `weights`; `policy`: version, and every setting that is not the default; `shards`, `samples`;
        `encodings`; `views`: complete ones; `tasks_done`, `tasks`, `complete`, `bytes`; `root` digest; `last_run`:
        date, or None.
    """
    store = Store(url)
    try:
        cache = Cache(store)
        runs = read_provenance(store)
    except KdpipeError as e:
        return {"cache": url, "problem": e.what}
    teacher = cache.identity["teacher"]
    tasks = len(cache.segments) * len(cache.shards)
    return {
        "cache": url,
        "problem": None,
        "identity": fingerprint(cache.identity),
        "teacher": teacher["model"],
        "weights": teacher["weights"],
        "policy": _policy(cache.identity["views"]),
        "shards": len(cache.shards),
        "samples": sum(s["samples"] for s in cache.shards),
        "encodings": sorted({s.encoding.name for s in cache.segments}),
        "views": describe(cache.views()),
        "tasks_done": len(cache.commits),
        "tasks": tasks,
        "complete": 0 < tasks == len(cache.commits),
        "bytes": sum(cache.bytes(segment) for segment in cache.segments),
        "root": cache.root_digest(),
        "last_run": max((run["date"] for run in runs), default=None),
    }


def _policy(views: dict[str, Any]) -> dict[str, Any]:
    plain = load_json(json.dumps(ViewsConfig().identity()))
    changed = {name: value for name, value in views.items() if name not in plain or value != plain[name]}
    return {"version": views["version"], **changed}
