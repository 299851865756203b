"""What a user may name as a set of shards, turned into a list of their URLs."""

import glob
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kdpipe._util.files import read_bounded
from kdpipe._util.redact import SHARD_URLS, is_http
from kdpipe._util.untrusted import load_json
from kdpipe.errors import ShardError
from kdpipe.shards import remote

# Of an _info.json or a list of URLs.
MAX_TEXT_BYTES = 2**26
_GLOB, _HTTP_GLOB = re.compile(r"[*?\[]"), re.compile(r"[*\[]")
_INFO = re.compile(r"(?P<path>.*\.json)(:(?P<split>[^:/]+))?$")
# The names of timm's manifest, in the order in which timm looks for them.
_INFO_NAMES = ("_info.json", "info.json")
_HOW = (
    "a brace pattern, a folder, a glob, a .tar file, an fsspec URL of these, timm's _info.json, or a .txt file of URLs"
)
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")
_ABSOLUTE_OR_UP = re.compile(r"^[/~]|(^|/)\.\.(/|$)|::|://|[\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Source:
    """Shards in the order of their names, and what a manifest of timm's contains about them."""

    urls: list[str]
    lengths: dict[str, int] = field(default_factory=dict)  # samples by url
    alt_label: str | None = None  # the field of .json that has the label
    names: list[str] = field(default_factory=list)  # of each url


def expand(source: str, split: str | None = None) -> list[str]:
    """The URLs of a set of shards, sorted by file name; local ones as absolute paths.

    Args:
        source: a brace pattern (`a-{0000..0019}.tar`, several joined by `::`), a folder, a glob, a .tar file,
            or any of these as an fsspec URL; timm's `_info.json`, with an optional `:split` at its end; or a .txt
            file with the URL of one shard a line. A "?" in an HTTP URL begins its query: presigned URLs may be named.
        split: of an `_info.json`, or of a folder with one.

    Raises:
        ShardError: nothing found, a member of a pattern missing, an unusable `_info.json`, or one shard twice.
    """
    return resolve(source, split).urls


def resolve(source: str, split: str | None = None, *, look: bool = True) -> Source:
    """As `expand`, with the lengths in an `_info.json`; without `look`, named shards needn't be there."""
    info = _INFO.match(source)
    if info is not None:
        if split is not None and info["split"] not in (None, split):
            raise ShardError("two splits are named", where=source, found=f"{info['split']} and {split}")
        return _checked(_from_info(info["path"], split or info["split"], look), source)
    if not _is_pattern(source) and _is_folder(source):
        for name in _INFO_NAMES:
            beside = f"{source.rstrip('/')}/{name}"
            if _exists(beside):  # a folder of train and validation shards must not become one set by accident
                return _checked(_from_info(beside, split, look), source)
    if split is not None:
        raise ShardError("a split needs an _info.json", where=source, found=f"split {split}")
    return _checked(Source(_plain(source, look)), source)


def addresses(source: str) -> dict[str, str]:
    """Where the shards of a set are now, by their names; none of them is looked for.

    Raises:
        ShardError: as `expand`, naming the environment variable that it comes from.
    """
    try:
        found = resolve(source, look=False)
        return dict(zip(found.names, found.urls, strict=True))
    except ShardError as error:
        where = f"{SHARD_URLS}={error.where}"
        raise ShardError(error.what, where=where, found=error.found, allowed=error.allowed, do=error.do) from error


def is_local(url: str) -> bool:
    """Whether a URL is a path of this machine."""
    return "://" not in url


def name_of(url: str) -> str:
    """A shard's file name; the query of an HTTP URL is no part of it."""
    return _without_query(url)[0].rsplit("/", 1)[-1]


def is_name(name: str) -> bool:
    """Whether a shard may be called so."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def is_name_of(name: str, url: str) -> bool:
    """Whether a name is the file name of a URL, or its path below some folder as `_names` writes it."""
    return name == name_of(url) or f"/{_without_query(url)[0]}".endswith(f"/{unquote(name)}")


def _names(urls: list[str]) -> list[str]:
    """The names of shards, which are their identity: file names or, where two are alike, paths below the folder that
    all are in. Names are one component of paths elsewhere, so slashes are written as %2F."""
    names = [name_of(url) for url in urls]
    if len(set(names)) == len(names):
        return names
    paths = [_without_query(url)[0] for url in urls]
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    common = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    below = ["/".join(path.split("/")[common:]) for path in paths]
    return [path.replace("%", "%25").replace("/", "%2F") for path in below]


def _plain(source: str, look: bool) -> list[str]:
    parts = source.split("::")
    if len(parts) > 1 and all(name_of(part).endswith(".tar") for part in parts):  # else protocols joined to a chain
        return [url for part in parts for url in _plain(part, look)]
    path, query = _without_query(source)
    if path.endswith(".txt") and not _is_pattern(source):
        return _listed(source)
    if "{" in path:
        urls = [url + query for url in _braces(path)]
        return _all_there(urls, "a shard of the pattern is missing") if look else urls
    if _is_pattern(source):
        if query:
            do = "Name each: joined by ::, or one a line in a .txt file"
            raise ShardError("presigned URLs can't be listed by a glob", where=source, do=do)
        found = _glob(source)
        return [url for url in found if url.endswith(".tar")] or _nothing(source, "no .tar file matches", found)
    if _is_folder(source):
        return _glob(f"{source.rstrip('/')}/*.tar") or _nothing(
            source, "no .tar file in the folder (**/*.tar finds those below)"
        )
    if look and not _exists(source):
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


def _listed(path: str) -> list[str]:
    """The lines of a text file, each a shard; to the letter, since signatures may contain anything."""
    try:
        lines = [line.strip() for line in _text(path).decode().splitlines()]
    except UnicodeDecodeError as error:
        raise ShardError("a list of URLs is text", where=path, allowed="one URL a line, in UTF-8") from error
    return [_absolute(line) for line in lines if line and not line.startswith("#")]


def _from_info(path: str, split: str | None, look: bool) -> Source:
    try:
        splits = load_json(_text(path))["splits"]
        names = {name: _split(entry) for name, entry in splits.items()}
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        allowed = "splits by name, each with filenames and shard_lengths"
        raise ShardError("not a manifest of timm's", where=path, allowed=allowed) from error
    if split is None and len(names) != 1:
        raise ShardError("which split?", where=path, allowed=", ".join(sorted(names)), do="Name one by --split")
    if split is not None and split not in names:
        raise ShardError("no such split", where=path, found=split, allowed=", ".join(sorted(names)))
    return _lengths(path, names[split] if split is not None else next(iter(names.values())), look)


def _split(entry: dict[str, Any]) -> dict[str, Any]:
    filenames, lengths = entry["filenames"], entry["shard_lengths"]
    if not isinstance(filenames, list) or not isinstance(lengths, list):
        raise TypeError
    if not all(isinstance(name, str) and name for name in filenames) or not all(type(n) is int for n in lengths):
        raise TypeError
    alt_label = entry.get("alt_label") or None
    if not isinstance(alt_label, str | None):
        raise TypeError
    return {"filenames": filenames, "lengths": lengths, "alt_label": alt_label}


def _lengths(path: str, chosen: dict[str, Any], look: bool) -> Source:
    filenames, lengths = chosen["filenames"], chosen["lengths"]
    if len(filenames) != len(lengths):
        found = f"{len(filenames)} filenames, {len(lengths)} shard_lengths"
        raise ShardError("a split's lists differ in length", where=path, found=found)
    for name in filenames:  # a file must not choose what else is read
        if _ABSOLUTE_OR_UP.search(name):
            raise ShardError(
                "the manifest names a shard elsewhere", where=path, found=name, allowed="names of files in its folder"
            )
    folder = path.rpartition("/")[0] or "."
    urls = [_absolute(f"{folder}/{name}") for name in filenames]
    if look:
        _all_there(urls, "a shard that the manifest names is missing")
    return Source(urls, dict(zip(urls, lengths, strict=True)), chosen["alt_label"])


def _text(path: str) -> bytes:
    if is_local(_absolute(path)):
        try:
            return read_bounded(Path(_absolute(path)), MAX_TEXT_BYTES)
        except FileNotFoundError as error:
            raise ShardError("no such file", where=path, allowed=_HOW) from error
        except OSError as error:
            raise ShardError(f"the file can't be read ({error.strerror or error})", where=path) from error
    data = remote.read(path, MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ShardError("the file is too large", where=path, allowed=f"at most {MAX_TEXT_BYTES} bytes")
    return data


def _checked(source: Source, given: str) -> Source:
    if not source.urls:
        _nothing(given, "no shards")
    names = _names(source.urls)
    pairs = sorted(zip(names, source.urls, strict=True))
    for (name, url), (again, _) in pairwise([*pairs, ("", "")]):
        remote.refuse_chain(url)
        if not is_name(name):
            allowed = "a file name of up to 255 characters, without control characters and backslashes"
            raise ShardError("a shard's name can't be used", where=given, found=repr(name), allowed=allowed)
        if name == again:
            raise ShardError("a shard is named twice", where=given, found=url, do="Name each once")
    return replace(source, urls=[url for _, url in pairs], names=[name for name, _ in pairs])


def _without_query(url: str) -> tuple[str, str]:
    """An HTTP URL's path with what stands before it, and its query; other URLs have none."""
    if not is_http(remote.unwrapped(url)):
        return url, ""
    at = min((at for at in (url.find("?"), url.find("#")) if at >= 0), default=len(url))
    return url[:at], url[at:]


def _is_pattern(source: str) -> bool:
    if not is_http(remote.unwrapped(source)):
        return "{" in source or bool(_GLOB.search(source))
    path = _without_query(source)[0].split("://", 1)[1].partition("/")[2]  # [::1] is a host
    return "{" in path or bool(_HTTP_GLOB.search(path))


def _absolute(url: str) -> str:
    if not is_local(url):
        return url.removeprefix("file://") if url.startswith("file:///") else url
    return str(Path(url).expanduser().absolute())


def _glob(pattern: str) -> list[str]:
    if is_local(_absolute(pattern)):
        return sorted(glob.glob(_absolute(pattern), recursive=True))
    return remote.listed(pattern)


def _is_folder(url: str) -> bool:
    if is_local(_absolute(url)):
        return os.path.isdir(_absolute(url))  # False, too, where it is unknown
    # A shard's server gets no request for a listing: by HTTP that would fetch the shard.
    return not name_of(url).endswith((".tar", ".txt")) and remote.is_folder(url)


def _exists(url: str) -> bool:
    if not is_local(_absolute(url)):
        return remote.exists(url)
    try:
        return Path(_absolute(url)).exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ShardError(f"can't be read ({error.strerror})", where=url) from error


def _all_there(urls: list[str], what: str) -> list[str]:
    missing = _missing(urls)
    if missing:
        have = f"{len(urls) - len(missing)} of {len(urls)} shards"
        raise ShardError(what, where=missing[0], found=have)
    return urls


def _missing(urls: Iterable[str]) -> list[str]:
    urls = list(urls)
    pool = ThreadPoolExecutor(16)  # a remote store is slow, but serves many requests at a time
    try:
        return [url for url, there in zip(urls, pool.map(_exists, urls), strict=True) if not there]
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure there is nothing to wait for
