"""Changes to a finished cache by somebody who knows the format: every digest is right again afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe._util.fingerprint import fingerprint, sha256
from kdpipe.cache.sealed import seal


def sealed(path: Path) -> bool:
    """Whether a file of a cache holds its own digest."""
    return path.suffix == ".json" and path.name != "zarr.json"


def document(path: Path) -> dict[str, Any]:
    """The content of a record or of Zarr's metadata."""
    content = json.loads(path.read_bytes())
    if sealed(path):
        del content["digest"]
    return content


def rewrite(cache: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> dict[Path, bytes]:
    """Change a record or a zarr.json file, and the digests that others hold of it; what the files were before.

    `change` gets the content, changes it in place or returns another one.
    """
    path = cache / name
    content = document(path)
    before, other = path.read_bytes(), change(content)
    content = content if other is None else other
    data = seal(content) if sealed(path) else json.dumps(content).encode()
    path.write_bytes(data)
    changed = {path: before}
    for record in sorted((cache / "commits").rglob("*.json")):
        held = document(record)
        if record != path and held.get("files", {}).get(name) == sha256(before):
            changed[record] = record.read_bytes()
            record.write_bytes(seal({**held, "files": {**held["files"], name: sha256(data)}}))
    if name == "zarr.json":
        _reidentify(cache, content, changed)
    return changed


def _reidentify(cache: Path, root: Any, changed: dict[Path, bytes]) -> None:
    """Give all records the digest of the identity in this root, if it can have one."""
    try:
        digest = fingerprint(root["attributes"]["kdpipe"]["identity"])
    except (KeyError, TypeError, ValueError, IndexError):
        return
    for record in sorted((cache / "commits").rglob("*.json")):
        held = document(record)
        if "identity_digest" in held:
            changed.setdefault(record, record.read_bytes())
            record.write_bytes(seal({**held, "identity_digest": digest}))
