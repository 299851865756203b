"""safetensors files: written with a digest of all that they hold, read within bounds and checked against it.

What kdpipe records about the tensors is one JSON object under one key of the file's metadata. With it lie two
digests: `tensors_sha256` of the tensors, and `header_sha256` of the object and the former. So the header can be checked
without reading the tensors, and no byte that decides the content can change unseen. A digest is no signature: who
changes a file on purpose can compute it again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from kdpipe._util.fingerprint import canonical_json, fingerprint
from kdpipe._util.untrusted import load_json

Tensors = dict[str, torch.Tensor]

# The safetensors library itself stops at 100 MB; a header of this size describes some hundred thousand tensors.
HEADER_BYTES = 2**24
_TENSORS, _HEADER = "tensors_sha256", "header_sha256"
_remarked: set[tuple[str, str]] = set()
_log = logging.getLogger("kdpipe")


@dataclass(frozen=True)
class Header:
    """What a file's metadata hold under one key.

    Attributes:
        content: the JSON object; None where the file has nothing under this key.
        tensors_sha256: digest that its tensors must have; None in files of other programs and of older versions.
    """

    content: dict[str, Any] | None
    tensors_sha256: str | None


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 over every tensor (name, dtype, shape, bytes) in the order of their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        found.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        found.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write(path: str | os.PathLike[str], tensors: Tensors, key: str, content: dict[str, Any]) -> None:
    """Write tensors (contiguous, on the CPU, none sharing memory) with `content` and the digests under `key`.

    Raises:
        OSError, SafetensorError: it can't be written.
    """
    # As it will be read: JSON has no keys but text, and sorts those.
    sealed = {**json.loads(canonical_json(content)), _TENSORS: digest(tensors)}
    # All under one key, because the library writes several in random order.
    save_file(tensors, path, {key: canonical_json({**sealed, _HEADER: fingerprint(sealed)}).decode()})


def read_header(path: str | os.PathLike[str], key: str) -> Header:
    """A file's header, its digest checked; the tensors are not read.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't a safetensors file, or its header is damaged.
    """
    with _opened(path) as file:
        return _header(file.metadata() or {}, key)


def read(path: str | os.PathLike[str], key: str) -> tuple[Tensors, Header]:
    """A file's tensors, on the CPU, and its header. What has no digest is remarked, see `remark_unchecked`.

    Raises:
        OSError, ValueError: as `read_header`, or its tensors aren't those that were written.
    """
    with _opened(path) as file:
        header = _header(file.metadata() or {}, key)
        # Copied, because the library maps the file: who overwrites it later would change what has been checked.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    if header.tensors_sha256 is None:
        remark_unchecked(path)
    elif digest(tensors) != header.tensors_sha256:
        raise ValueError("damaged: its tensors aren't those that were written (their sha256 differs)")
    return tensors, header


def parse(data: bytes) -> Tensors:
    """The tensors of a file that was read and checked as a whole.

    Raises:
        ValueError: it isn't a safetensors file.
    """
    _check_length(data[:64], len(data))
    with _translated():
        return load(data)


def remark_unchecked(path: str | os.PathLike[str]) -> None:
    """Log once for a file whose content can't be compared with what was written."""
    remark(path, "no digest: its content can't be checked")


def remark(path: str | os.PathLike[str], text: str) -> None:
    """Log once what a user should know about how a file of weights is read.

    It goes to the logger "kdpipe", and so to stderr unless a program configures logging otherwise.
    """
    key = (os.path.abspath(path), text)
    # Of processes under torchrun one is enough.
    if key not in _remarked and os.environ.get("RANK", "0") == "0":
        _remarked.add(key)
        _log.warning("%s: %s", os.fspath(path), text)


def _header(metadata: Mapping[str, str], key: str) -> Header:
    if key not in metadata:
        if any(_TENSORS in value or _HEADER in value for value in metadata.values()):
            raise ValueError(f"damaged: its header has digests, but not under the key {key}")
        return Header(None, None)
    try:
        content = load_json(metadata[key])
    except ValueError as e:
        raise ValueError(f"the JSON under {key} of its header can't be read: {e}") from e
    if not isinstance(content, dict):
        raise ValueError(f"the JSON under {key} of its header is no object but a {type(content).__name__}")
    if _HEADER not in content and _TENSORS not in content:
        return Header(content, None)
    try:
        of_header = content.pop(_HEADER, None)
        intact = of_header == fingerprint(content) and isinstance(content.get(_TENSORS), str)
    except RecursionError:
        intact = False
    if not intact:
        raise ValueError("damaged: its header isn't the one that was written (its sha256 differs)")
    return Header(content, content.pop(_TENSORS))


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    with Path(path).open("rb") as plain:
        _check_length(plain.read(64), os.fstat(plain.fileno()).st_size)
    with _translated(), safe_open(path, framework="pt") as file:
        yield file


def mistaken(start: bytes) -> str | None:
    """What a file with these first bytes is instead of weights, and what to do about it; None where unknown."""
    text = start.lstrip().lower()
    if not start:
        return "the file is empty"
    if text.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the file it stands for: fetch that with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not weights: the download went to a page about the file or to a login"
    return None


def _check_length(start: bytes, size: int) -> None:
    """Refuse a header that is too long before the library reads it: it allows 100 MB."""
    instead = mistaken(start)
    if instead:
        raise ValueError(instead)
    if start.startswith(b"PK\x03\x04"):
        raise ValueError("a zip, as torch.save writes it, and no safetensors file: give it the suffix .pth")
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > size - 8:
        raise ValueError(f"not a whole safetensors file: its header would end beyond its {size} bytes")
    if length > HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, at most {HEADER_BYTES} are read")


@contextmanager
def _translated() -> Iterator[None]:
    """The library's own errors, and those of dtypes that PyTorch lacks, as ValueError of one short line."""
    try:
        yield
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as e:
        text = " ".join(str(e).split()).removeprefix("Error while deserializing").removeprefix(" header").lstrip(": ")
        kind = "" if isinstance(e, SafetensorError) else f"{type(e).__name__}: "
        raise ValueError(f"not a safetensors file as it should be: {kind}{text[:200]}") from e
