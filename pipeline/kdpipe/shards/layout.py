"""An index on disk: a folder of index.json and one .npy file an array, written whole or not at all.

train.index/
  index.json          format, block size, shards, what was skipped, every array's shape, dtype and sha256
  labels.npy ...      mapped into memory, never read as a whole
"""

import io
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe._util.files import fsync
from kdpipe._util.fingerprint import canonical_json, fingerprint, sha256
from kdpipe.errors import IndexFileError
from kdpipe.shards.arrays import Arrays
from kdpipe.shards.document import DTYPES, MAX_BYTES, check, read

FORMAT, VERSION = "kdpipe index", 1
DOCUMENT = "index.json"
_AGAIN = "Make it again by `kdpipe index --overwrite`"
_REPLACE = "Choose another --out, or replace it by --overwrite"


def save(path: Path, document: dict[str, Any], arrays: dict[str, np.ndarray], overwrite: bool = False) -> bool:
    """Write an index; False if the very same one is there already.

    An index that differs only in where its shards lie is replaced; any other only with `overwrite`.

    Raises:
        IndexFileError: something else is in the way, or the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            complete = _write(partial, document, arrays)
            if not _may_replace(path, complete, overwrite):
                return False
            _swap(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        fsync(path.parent)
    except OSError as error:
        do = "Choose another --out, or make room and permission"
        raise IndexFileError(f"the index can't be written ({error.strerror or error})", where=path, do=do) from error
    return True


def refuse_foreign(path: Path) -> None:
    """Before hours of work: could an index be written there at all?

    Raises:
        IndexFileError: a file, or a folder that is neither empty nor an index, is there.
    """
    if path.is_dir() and (not any(path.iterdir()) or (path / DOCUMENT).is_file()):
        return
    if path.exists() or path.is_symlink():
        raise IndexFileError("something else than an index is there", where=path, do="Choose another --out")


def refuse_other(path: Path, **expected: Any) -> None:
    """Before hours of work, again: is an index there that can't be the one about to be made?

    Args:
        path: where.
        expected: what is known beforehand of the document; `names` are its shards'.

    Raises:
        IndexFileError: an index is there which differs in one of them.
    """
    if not (path / DOCUMENT).is_file():
        return
    old = load(path)
    skipped = {entry["shard"] for entry in old["skipped"]}  # some as a whole
    old["names"] = sorted(skipped | {shard["name"] for shard in old["shards"]})
    for field, value in expected.items():
        if old[field] != value:
            raise IndexFileError(f"another index is there, with other {field}", where=path, do=_REPLACE)


def load(path: Path) -> dict[str, Any]:
    """The document of an index, its digest checked.

    Raises:
        IndexFileError: no index there, damaged, or of another format version.
    """
    file = path / DOCUMENT
    try:
        document = read(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        kept = _set_aside(path)
        if kept:
            do = f"Bring back the old one: mv {shlex.quote(str(kept[0]))} {shlex.quote(str(path))}"
            raise IndexFileError("the index was being replaced when that was stopped", where=path, do=do) from error
        do = "Make it by `kdpipe index`, and name the folder that it wrote"
        if path.exists():
            do = f"Pass a folder with {DOCUMENT}, as `kdpipe index` writes it"
        raise IndexFileError("no index there", where=path, do=do) from error
    except OSError as error:
        raise IndexFileError(f"the index can't be read ({error.strerror or error})", where=file) from error
    except ValueError as error:
        raise IndexFileError(f"the index is damaged ({error})", where=file, do=_AGAIN) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise IndexFileError("not an index of kdpipe", where=file)
    if document.get("version") != VERSION:
        found, do = f"version {document.get('version')}", "Make it again with this version of kdpipe"
        raise IndexFileError("another format", where=file, found=found, allowed=f"version {VERSION}", do=do)
    digest = document.pop("digest", None)
    if digest != fingerprint(document):
        raise IndexFileError("the index is damaged: its digest doesn't match", where=file, do=_AGAIN)
    document["digest"] = digest
    check(document, file, _AGAIN)
    return document


def _write(folder: Path, document: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    table = {}
    for name, dtype in DTYPES.items():
        array = np.ascontiguousarray(arrays[name], dtype)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        _put(folder / f"{name}.npy", buffer.getbuffer())
        table[name] = {"dtype": dtype, "shape": list(array.shape), "sha256": sha256(buffer.getbuffer())}
    complete = {"format": FORMAT, "version": VERSION, **document, "arrays": table}
    complete["digest"] = fingerprint(complete)
    data = canonical_json(complete)
    if len(data) > MAX_BYTES:
        found, allowed = f"{len(data)} bytes of {DOCUMENT}", f"at most {MAX_BYTES}"
        do = f"Index fewer shards at a time, or repair the {len(document['skipped'])} samples that were left out"
        raise IndexFileError("the index is too large", where=folder.parent, found=found, allowed=allowed, do=do)
    _put(folder / DOCUMENT, data)
    fsync(folder)
    return complete


def _may_replace(path: Path, new: dict[str, Any], overwrite: bool) -> bool:
    refuse_foreign(path)
    if not (path / DOCUMENT).is_file():
        return True
    try:
        old = load(path)
    except IndexFileError:
        if overwrite:
            return True
        raise
    if old["digest"] == new["digest"]:
        return overwrite and not _sound(path, old)
    if not overwrite and _placeless(old) != _placeless(new):
        raise IndexFileError("another index is there", where=path, do=_REPLACE)
    return True


def _sound(path: Path, document: dict[str, Any]) -> bool:
    try:
        Arrays(path, document).verify()
    except IndexFileError:
        return False
    return True


def _placeless(document: dict[str, Any]) -> dict[str, Any]:
    shards = [{k: v for k, v in shard.items() if k != "url"} for shard in document["shards"]]
    return {k: v for k, v in document.items() if k != "digest"} | {"shards": shards}


def _set_aside(path: Path) -> list[Path]:
    """Whole indexes that a stopped `_swap` took out of the way of `path`, which is not there."""
    if path.exists() or not path.parent.is_dir():
        return []
    start = f".{path.name}."
    beside = (p for p in path.parent.iterdir() if p.name.startswith(start) and p.suffix == ".old")
    return sorted(p for p in beside if (p / DOCUMENT).is_file())


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        kept = _set_aside(path)
        new.rename(path)
        for old in kept:
            shutil.rmtree(old, ignore_errors=True)
        return
    old = new.with_name(new.name.replace(".partial", ".old"))
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _put(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
