"""JSON files that guard themselves: canonical bytes that hold their own digest, so any flipped bit shows."""

import json
from typing import Any

from pipeline.cache.store import Store
from pipeline.errors import CorruptionError
from pipeline.fingerprint import canonical_json, fingerprint


def seal(content: dict[str, Any]) -> bytes:
    """Canonical bytes of a record with its digest."""
    return canonical_json({**content, "digest": fingerprint(content)}) + b"\n"


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The content of a sealed record.

    Raises:
        CorruptionError: if a single bit differs from what `seal` wrote.
    """
    try:
        content = json.loads(data)
        digest = content.pop("digest")
        intact = seal(content) == data and digest == fingerprint(content)
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CorruptionError(
            "a record of the cache is damaged: its digest is not that of its content",
            where=where,
            do="Restore the file from a copy; a finished task's record may also be deleted, and the task repeated",
        )
    return dict(content)


def read_record(store: Store, name: str) -> dict[str, Any]:
    """Read and unseal one record."""
    return unseal(store.read(name), f"{store}/{name}")
