"""Text that may be shown and stored: URLs without their secrets, and no control characters.

A URL's user and password, and the query of a presigned one, give any reader access to what it names. They
are used for reading and kept nowhere else: not in a file, a message or a log.
"""

import re
from typing import Any

# The environment variable with the places where shards are now. Its value may hold secrets.
SHARD_URLS = "KDPIPE_SHARD_URLS"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>(?:(?!::[A-Za-z][A-Za-z0-9+.-]*://)[^\s\"<>])*)")
_TAIL = re.compile(r"[)'\]},.;:]*$")
# A password with a slash in it: what stands after the first colon is no port.
_NO_PORT = re.compile(r"[^/@?#\[\]]*:(?!\d*(?:[/?#]|$))")
# In Azure's URLs the container stands where others have a user.
_CONTAINERS = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})
_MOST = 2000


def is_http(url: str) -> bool:
    """Whether a URL is fetched by HTTP, where "?" begins a query and "#" a fragment."""
    return url.lower().startswith(("http://", "https://"))


def bare_url(url: str) -> str:
    """A URL without user, password, query and fragment; a path of this machine as it is."""
    return _URL.sub(_bare, url)


def redact(text: str) -> str:
    """A text with every URL in it as `bare_url` makes it."""
    return _URL.sub(_bare_with_tail, text) if "://" in text else text


def printable(text: str) -> str:
    """A text on one line: white space is one space; control characters, surrogates and the like are escaped.

    What is longer than any message needs loses its middle.
    """
    text = " ".join(text.split())
    if len(text) > _MOST:
        text = f"{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def showable(value: Any) -> Any:
    """A report for a terminal: texts in it, which may be names from others' files, without secrets and controls."""
    if isinstance(value, dict):
        return {key: showable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [showable(part) for part in value]
    return printable(redact(value)) if isinstance(value, str) else value


def _bare_with_tail(match: re.Match[str]) -> str:
    """Punctuation that follows a URL in a sentence belongs to the sentence."""
    found = match[0]
    tail = _TAIL.search(found)
    at = tail.start() if tail else len(found)
    return bare_url(found[:at]) + found[at:]


def _bare(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme in _CONTAINERS and ":" not in rest.partition("@")[0]:
        kept = rest
    elif _NO_PORT.match(rest) and "@" in rest:
        kept = rest.rpartition("@")[2]
    else:
        authority = re.match(r"[^/?#]*", rest)
        length = authority.end() if authority else 0
        kept = rest[:length].rpartition("@")[2] + rest[length:]
    if scheme in {"http", "https"}:
        kept = re.split(r"[?#]", kept, maxsplit=1)[0]
    else:  # elsewhere "?" may be of a glob or of a name
        at = kept.find("?")
        if at >= 0 and "=" in kept[at:]:
            kept = kept[:at]
    return f"{match['scheme']}://{kept}"
