"""Stable digests: canonical JSON and what is hashed through it. Never Python's `hash`, never a path."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys, no spaces, ASCII: equal values give equal bytes.

    Raises:
        ValueError: on NaN or infinity, which JSON can't represent.
        TypeError: on anything that is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a JSON value's canonical form."""
    return sha256(canonical_json(value))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a local file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(ours: Any, theirs: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: (dotted path, ours, theirs), in a stable order."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for key in sorted({*ours, *theirs}):
            path = f"{at}.{key}" if at else str(key)
            found += differences(ours.get(key), theirs.get(key), path)
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for d in differences(a, b, f"{at}[{i}]")]
    return [] if ours == theirs else [(at, ours, theirs)]
