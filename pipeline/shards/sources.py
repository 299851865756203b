"""What a user may name as a set of shards, turned into a list of their URLs."""

import glob
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import ShardError

_GLOB = re.compile(r"[*?\[]")
_INFO = re.compile(r"(?P<path>.*\.json)(:(?P<split>[^:/]+))?$")
_HOW = "a brace pattern, a folder, a glob, a .tar file, an fsspec URL of these, or timm's _info.json"


@dataclass(frozen=True)
class Source:
    """Shards in the order of their file names, and how many samples each should hold, where that is said."""

    urls: list[str]
    lengths: dict[str, int]  # by url; empty unless an _info.json told


def expand(source: str, split: str | None = None) -> list[str]:
    """The URLs of a set of shards, sorted by file name; local ones as absolute paths.

    Args:
        source: a brace pattern (`a-{0000..0019}.tar`, several joined by `::`), a folder, a glob, a .tar file,
            or any of these as an fsspec URL; or timm's `_info.json`, with an optional `:split` at its end.
        split: of an `_info.json`, or of a folder with one.

    Raises:
        ShardError: nothing found, a member of a pattern missing, an unusable `_info.json`, or two shards of
            one file name (names are their identity).
    """
    return resolve(source, split).urls


def resolve(source: str, split: str | None = None) -> Source:
    """As `expand`, with the lengths that an `_info.json` tells."""
    info = _INFO.match(source)
    if info is not None:
        if split is not None and info["split"] not in (None, split):
            raise ShardError("two splits are named", where=source, found=f"{info['split']} and {split}")
        return _checked(_from_info(info["path"], split or info["split"]), source)
    if not _is_pattern(source) and _is_folder(source):
        beside = f"{source.rstrip('/')}/_info.json"
        if _exists(beside):  # a folder of train and validation shards must not become one set by accident
            return _checked(_from_info(beside, split), source)
    if split is not None:
        raise ShardError("a split needs an _info.json", where=source, found=f"split {split}")
    return _checked(Source(_plain(source), {}), source)


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url


def name_of(url: str) -> str:
    """A shard's file name, which is its identity."""
    return url.rsplit("/", 1)[-1]


def _plain(source: str) -> list[str]:
    if "{" in source:
        urls = _braces(source)
        missing = _missing(urls)
        if missing:
            have = f"{len(urls) - len(missing)} of {len(urls)} shards"
            raise ShardError("a shard of the pattern is missing", where=missing[0], found=have)
        return urls
    parts = source.split("::")
    if len(parts) > 1 and all(part.endswith(".tar") for part in parts):  # else it is a chain of fsspec protocols
        return [url for part in parts for url in _plain(part)]
    if _GLOB.search(source):
        found = _glob(source)
        return [url for url in found if url.endswith(".tar")] or _nothing(source, "no .tar file matches", found)
    if _is_folder(source):
        return _glob(f"{source.rstrip('/')}/*.tar") or _nothing(source, "no .tar file in the folder")
    if not _exists(source):
        _nothing(source, "no such file or folder")
    return [_absolute(source)]


def _nothing(source: str, what: str, found: list[str] | None = None) -> list[str]:
    raise ShardError(what, where=source, found=found[0] if found else None, allowed=_HOW)


def _braces(source: str) -> list[str]:
    from webdataset.shardlists import expand_urls  # imports torch

    try:
        return [_absolute(url) for url in expand_urls(source)]
    except (ValueError, AssertionError) as error:  # unbalanced braces, an environment variable that isn't set
        raise ShardError(f"not a brace pattern ({error})", where=source, allowed="as in a-{0000..0019}.tar") from error


def _from_info(path: str, split: str | None) -> Source:
    try:
        with fsspec.open(_absolute(path), "rb") as file:
            splits = json.load(file)["splits"]
        names = {name: {"filenames": s["filenames"], "lengths": s["shard_lengths"]} for name, s in splits.items()}
    except FileNotFoundError as error:
        raise ShardError("no such file", where=path, allowed=_HOW) from error
    except OSError as error:
        raise ShardError(f"the file can't be read ({error.strerror or error})", where=path) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = "splits by name, each with filenames and shard_lengths"
        raise ShardError("not timm's _info.json", where=path, allowed=allowed) from error
    if split is None and len(names) != 1:
        raise ShardError("which split?", where=path, allowed=", ".join(sorted(names)), do="Name one by --split")
    if split is not None and split not in names:
        raise ShardError("no such split", where=path, found=split, allowed=", ".join(sorted(names)))
    chosen = names[split] if split is not None else next(iter(names.values()))
    return _lengths(path, chosen)


def _lengths(path: str, chosen: dict[str, Any]) -> Source:
    filenames, lengths = chosen["filenames"], chosen["lengths"]
    if len(filenames) != len(lengths):
        found = f"{len(filenames)} filenames, {len(lengths)} shard_lengths"
        raise ShardError("a split's lists differ in length", where=path, found=found)
    folder = path.rpartition("/")[0] or "."
    urls = [_absolute(f"{folder}/{name}") for name in filenames]
    missing = _missing(urls)
    if missing:
        found = f"{len(urls) - len(missing)} of {len(urls)} shards"
        raise ShardError("a shard that _info.json names is missing", where=missing[0], found=found)
    return Source(urls, dict(zip(urls, lengths, strict=True)))


def _checked(source: Source, given: str) -> Source:
    if not source.urls:
        _nothing(given, "no shards")
    urls = sorted(source.urls, key=lambda url: (name_of(url), url))
    for one, two in pairwise(urls):
        if name_of(one) == name_of(two):
            do = "A shard's file name is its identity: rename one"
            raise ShardError("two shards have the same file name", where=given, found=f"{one} and {two}", do=do)
    return Source(urls, source.lengths)


def _is_pattern(source: str) -> bool:
    return "{" in source or bool(_GLOB.search(source))


def _absolute(url: str) -> str:
    if not is_local(url):
        return url.removeprefix("file://") if url.startswith("file:///") else url
    return str(Path(url).expanduser().absolute())


def _glob(pattern: str) -> list[str]:
    if is_local(_absolute(pattern)):
        return sorted(glob.glob(_absolute(pattern)))
    fs, inner = _filesystem(pattern)
    return sorted(str(fs.unstrip_protocol(path)) for path in fs.glob(inner))


def _is_folder(url: str) -> bool:
    if is_local(_absolute(url)):
        return Path(_absolute(url)).is_dir()
    fs, inner = _filesystem(url)
    return bool(fs.isdir(inner))


def _exists(url: str) -> bool:
    if is_local(_absolute(url)):
        return Path(_absolute(url)).exists()
    fs, inner = _filesystem(url)
    return bool(fs.exists(inner))


def _missing(urls: Iterable[str]) -> list[str]:
    urls = list(urls)
    with ThreadPoolExecutor(16) as pool:  # a remote store answers slowly, but many at a time
        return [url for url, there in zip(urls, pool.map(_exists, urls), strict=True) if not there]


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        fs, inner = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package isn't installed
        raise ShardError(f"the URL can't be opened ({error})", where=url) from error
    return fs, str(inner)
