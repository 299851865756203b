"""Parts: what is stored once beside the segments that need it. A teacher's classifier, its last stage, calibrations.

A part is parts/<name>.safetensors and, written last, the record commits/<name>.json with its digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdpipe._util.fingerprint import sha256
from kdpipe._util.untrusted import load_json
from kdpipe.cache.cache import Cache
from kdpipe.cache.checked import check_part, read_part_record
from kdpipe.cache.layout import CALIBRATION, Segment, part_file, part_record
from kdpipe.cache.names import is_file
from kdpipe.cache.sealed import seal
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.targets import Calibration, Encoding

if TYPE_CHECKING:
    import torch

_REPEAT = "Repeat the kdpipe cache-teacher that made it"
_MEND = "Delete its record, and repeat the kdpipe cache-teacher that made it"


def put_part(cache: Cache, name: str, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Store a part, unless one of this name is there; JSON-able `about` goes into its record.

    Raises:
        CacheError: it can't be written.
    """
    if name in cache.parts:
        return
    put_part_bytes(cache, name, _bytes(tensors), load_json(json.dumps(about)))


def put_part_bytes(cache: Cache, name: str, data: bytes, about: dict[str, Any]) -> None:
    """Store a part as its file is, and then its record; where another run has stored it meanwhile, that one counts.

    Raises:
        CacheError: it can't be written.
        IdentityError: see `Cache.require_current`.
    """
    store, file = cache.store, part_file(name)
    content = {"part": name, "identity_digest": cache.identity_digest, "files": {file: sha256(data)}}
    record = {**content, "bytes": len(data), "about": about}
    check_part(record, f"{store}/{part_record(name)}")
    cache.require_current()
    if not store.put_new(file, data):
        if _stored(cache, name):
            return
        store.put(file, data)
    cache.require_current()
    if not store.put_new(part_record(name), seal(record)) and not _stored(cache, name):
        store.put(part_record(name), seal(record))  # that of another cache
    cache.parts[name] = read_part_record(store, name)


def _stored(cache: Cache, name: str) -> bool:
    """Look for a part that was stored since the cache was opened; whether it is there."""
    record = read_part_record(cache.store, name) if cache.store.exists(part_record(name)) else None
    if record is not None and cache.owns(record):
        cache.parts[name] = record
    return name in cache.parts


def read_part(cache: Cache, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A part's tensors, on the CPU, and the `about` of its record.

    Raises:
        CorruptionError: its bytes are not those that were written.
        CacheError: it is missing.
    """
    data = read_part_bytes(cache, name)
    return load_tensors(data, f"{cache.store}/{part_file(name)}"), cache.parts[name]["about"]


def load_tensors(data: bytes, where: object) -> dict[str, torch.Tensor]:
    """The tensors of a part's file; raises CorruptionError if it isn't one."""
    from kdpipe._util.tensors import parse

    try:
        return parse(data)
    except ValueError as e:
        raise CorruptionError(f"a part of the cache can't be read: {e}", where=where, do=_MEND) from e


def read_part_bytes(cache: Cache, name: str) -> bytes:
    """A part's file, checked; raises as `read_part`."""
    if name not in cache.parts and not (is_file(part_record(name)) and _stored(cache, name)):
        where = f"{cache.store} part {name}"
        raise CacheError(f"the cache has no part {name}", where=where, do=_REPEAT)
    [(file, digest)] = cache.parts[name]["files"].items()
    data = cache.store.read(file)
    if sha256(data) != digest:
        raise CorruptionError("a part of the cache is damaged", where=f"{cache.store}/{file}", do=_MEND)
    return data


def put_calibration(cache: Cache, calibration: Calibration, about: dict[str, Any]) -> str:
    """Store a map's calibration under a name made of its content; returns the name."""
    name = calibration_name(calibration.tensors())
    put_part(cache, name, calibration.tensors(), about)
    return name


def calibration_name(tensors: dict[str, torch.Tensor]) -> str:
    """The name of the calibration with these tensors."""
    return CALIBRATION + sha256(_bytes(tensors))[:16]


def read_calibration(cache: Cache, encoding: Encoding) -> Calibration | None:
    """That of an encoding's map; None where there is none. Raises as `read_part`."""
    name = encoding.map.calibration if encoding.map else None
    if name is None:
        return None
    assert encoding.map is not None
    import torch

    tensors, about = read_part(cache, name)
    width, rank = encoding.map.shape[-1], encoding.map.rank
    shapes = {"mean": (width,), "std": (width,)} | ({} if rank is None else {"components": (rank, width)})
    for key, shape in shapes.items():
        there = tensors.get(key)
        if there is None or there.shape != shape or there.dtype != torch.float32 or not there.isfinite().all():
            found = "nothing" if there is None else f"{there.dtype} {tuple(there.shape)}"
            where = f"{cache.store}/{part_file(name)}: {key}"
            allowed = f"finite numbers, torch.float32 {shape}"
            raise CorruptionError("not of the map that needs it", where=where, found=found, allowed=allowed, do=_MEND)
    return Calibration(**{key: tensors[key] for key in shapes}, explained=float(about["explained"]))


def with_calibration(encoding: Encoding, name: str | None) -> Encoding:
    """The encoding whose map has the calibration of this name."""
    assert encoding.map is not None
    return replace(encoding, map=replace(encoding.map, calibration=name))


def needed(segments: Iterable[Segment]) -> set[str]:
    """Names of the calibrations that segments can't be read without."""
    maps = (segment.encoding.map for segment in segments)
    return {feature.calibration for feature in maps if feature is not None and feature.calibration is not None}


def unreferenced(cache: Cache) -> list[str]:
    """Calibrations of segments that are gone, or that never came to be."""
    wanted = needed(cache.segments)
    return [name for name in cache.parts if name.startswith(CALIBRATION) and name not in wanted]


def copy_parts(source: Cache, target: Cache, segments: Iterable[Segment]) -> int:
    """Copy what these segments need, and the parts of the teacher; those that are there stay. Returns the bytes.

    Raises:
        CorruptionError: a part of the source is damaged.
        CacheError: one is missing, or it can't be written.
    """
    wanted, copied = needed(segments), 0
    wanted |= {name for name in source.parts if not name.startswith(CALIBRATION)}
    for name in sorted(wanted - set(target.parts)):
        copied += copy_part(source, target, name)
    return copied


def copy_part(source: Cache, target: Cache, name: str) -> int:
    """Copy one part as it is; its bytes. Raises as `copy_parts`."""
    data = read_part_bytes(source, name)
    put_part_bytes(target, name, data, source.parts[name]["about"])
    return len(data)


def _bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
