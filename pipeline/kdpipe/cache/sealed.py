"""JSON files that guard themselves: canonical bytes that hold their own digest, so any flipped bit shows."""

from typing import Any

from kdpipe._util.fingerprint import canonical_json, fingerprint
from kdpipe._util.untrusted import load_json
from kdpipe.cache.store import Store
from kdpipe.errors import CorruptionError

# More than 100,000 shards take in zarr.json; parsed, it is below a GB whatever it holds.
JSON_BYTES = 2**25


def seal(content: dict[str, Any]) -> bytes:
    """Canonical bytes of a record with its digest."""
    return canonical_json({**content, "digest": fingerprint(content)}) + b"\n"


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The content of a sealed record.

    Raises:
        CorruptionError: if a single bit differs from what `seal` wrote.
    """
    try:
        content = load_json(data)
        # As it holds the right digest of its content, so does what equals it.
        intact = content.pop("digest") is not None and seal(content) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise CorruptionError(
            "a record of the cache is damaged: its digest is not that of its content",
            where=where,
            do="Restore the file from a copy; a finished task's record may also be deleted, and the task repeated",
        )
    return dict(content)


def read_record(store: Store, name: str) -> dict[str, Any]:
    """Read and unseal one record. What it holds is for `kdpipe.cache.checked` to check."""
    return unseal(store.read(name, JSON_BYTES), f"{store}/{name}")
