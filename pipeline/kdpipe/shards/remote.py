"""Shards behind URLs: every look-up and fetch, with the true cause of a failure and a bound on waiting.

fsspec's protocols have exceptions of their own, and some hide a refusal behind "file not found"; here each becomes
one line. A URL's user, password and query are used and never shown: `KdpipeError` leaves them out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from kdpipe._util.redact import is_http
from kdpipe.errors import ShardError

CONNECT_SECONDS, READ_SECONDS = 20, 60

# What may stand before a URL. Others make one file out of another, by whatever that contains.
_CACHES = re.compile(r"(?:(?:simplecache|filecache|blockcache)::)*")
_CHAINED = re.compile(r"^[A-Za-z0-9+.-]+::|::[A-Za-z][A-Za-z0-9+.-]*://")
_ACCESS = (
    "Give credentials in the environment, ~/.netrc or fsspec's configuration, "
    "or fresh URLs by kdpipe --shard-urls FILE.txt"
)
_NO_RANGES = "Download the shards, or serve them by a server that supports range requests"


class Missing(ShardError):
    """What a URL names is not there, according to its server."""


def unwrapped(url: str) -> str:
    """A URL without the names of local caches that stand before it, as in `simplecache::https://...`."""
    return url[_CACHES.match(url).end() :]  # type: ignore[union-attr]


def exists(url: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        ShardError: that can't be determined.
    """
    try:
        with _translated(url):
            fs, inner = _file_system(url)
            fs.info(inner)
    except Missing:
        return False
    return True


def is_folder(url: str) -> bool:
    """Whether a URL names a folder. One that ends in .tar is a shard, and its server gets no request for a listing."""
    try:
        with _translated(url):
            fs, inner = _file_system(url)
            return bool(fs.isdir(inner))
    except Missing:
        return False


def listed(pattern: str) -> list[str]:
    """URLs that match a glob."""
    with _translated(pattern):
        fs, inner = _file_system(pattern)
        return sorted(str(fs.unstrip_protocol(path)) for path in fs.glob(inner))


def read(url: str, most: int) -> bytes:
    """A small file, or its first `most` bytes.

    Raises:
        ShardError: it can't be read; `Missing` if it isn't there.
    """
    with _translated(url):
        fs, inner = _file_system(url)
        with fs.open(inner, "rb") as file:
            return bytes(file.read(most))


def download(url: str, path: Path) -> None:
    """A whole file onto local disk.

    Raises:
        ShardError: it can't be fetched; `Missing` if it isn't there.
    """
    with _translated(url):
        fs, inner = _file_system(url)
        fs.get_file(inner, str(path))


def read_range(url: str, size: int, start: int, stop: int) -> memoryview:
    """Bytes [start, stop) of a file that had `size` bytes when it was indexed.

    Raises:
        ShardError: they can't be fetched, or are fewer; `Missing` if the file isn't there.
    """
    where = f"{url}, bytes {start} to {stop}"
    with _translated(url, where):
        # A fresh look-up each time: fsspec keeps file systems itself and replaces them after a fork.
        fs, inner = _file_system(url)
        if is_http(url):
            # `cat_file` would take a whole file for a range of it, into memory; a file object checks the response.
            with fs.open(inner, size=size, cache_type="none") as file:
                file.seek(start)
                data = file.read(stop - start)
        else:
            data = fs.cat_file(inner, start=start, end=stop)
    if len(data) > stop - start:
        raise ShardError("the server ignores range requests", where=where, found=f"{len(data)} bytes", do=_NO_RANGES)
    if len(data) < stop - start:
        found, do = f"{len(data)} bytes", "Index the shards again if they were replaced"
        raise ShardError("fewer bytes came than were requested", where=where, found=found, do=do)
    return memoryview(data)


def refuse_chain(url: str) -> None:
    """Only fsspec's local caches may stand before a URL.

    Raises:
        ShardError: something else does.
    """
    if _CHAINED.search(unwrapped(url)):
        allowed = "a URL, or simplecache::, filecache:: or blockcache:: before one"
        raise ShardError("a chain of protocols", where=url, allowed=allowed)


def _file_system(url: str) -> tuple[Any, str]:
    refuse_chain(url)
    try:
        fs, inner = fsspec.core.url_to_fs(url, **_options(url))
    except Exception as error:  # an unknown protocol, one whose package isn't installed or that needs more than a URL
        raise ShardError(f"the URL can't be opened ({error})", where=url) from error
    return fs, str(inner)


def _options(url: str) -> dict[str, Any]:
    """For HTTP, whose client would give up on a large shard after five minutes and doesn't read ~/.netrc by itself."""
    target = unwrapped(url)
    if not is_http(target):
        return {}
    import aiohttp

    scheme = target.partition(":")[0].lower()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    configured = fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})
    options: dict[str, Any] = {"client_kwargs": {"timeout": timeout, "trust_env": True, **configured}}
    if "?" in target:  # signed as it is, to the letter
        options["encoded"] = True
    return options if target == url else {scheme: options}


@contextmanager
def _translated(url: str, where: str | None = None) -> Iterator[None]:
    try:
        yield
    except (ShardError, MemoryError):
        raise
    except Exception as error:
        true = _true_cause(error) if is_http(unwrapped(url)) else error
        status = getattr(true, "status", None)
        if status in (404, 410) or (isinstance(true, FileNotFoundError) and not true.errno):
            raise Missing("no such file", where=url) from error
        if "support range requests" in str(true):
            raise ShardError("the server ignores range requests", where=where or url, do=_NO_RANGES) from error
        what = f"the shard can't be fetched ({_error_text(true)})"
        denied = status in (401, 403) or isinstance(true, PermissionError) or "Credentials" in type(true).__name__
        raise ShardError(what, where=where or url, do=_ACCESS if denied else None) from error


def _true_cause(error: BaseException) -> BaseException:
    """fsspec reports every failed HTTP look-up as "file not found", caused by what really failed."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _error_text(error: BaseException) -> str:
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if isinstance(status, int) and status > 0:
        return f"HTTP {status} {message or ''}".rstrip()
    name = type(error).__name__
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return f"{name}: no response in time{': ' if str(error) else ''}{error}"
    return f"{name}: {error}"
