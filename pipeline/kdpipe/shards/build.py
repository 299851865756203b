"""Shards in, index out: scan in parallel, join in order, write once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import compute
from dask.delayed import delayed

from kdpipe._util.redact import bare_url
from kdpipe.errors import ConfigError, ShardError
from kdpipe.shards import layout
from kdpipe.shards.document import MAX_CLASSES
from kdpipe.shards.index import Index
from kdpipe.shards.samples import UNLABELLED, Check, Rules
from kdpipe.shards.scan import Scan, scan
from kdpipe.shards.sources import Source, name_of, resolve

Progress = Callable[[int, int, int], None]


def build_index(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    block_size: int = 256,
    num_classes: int | None = None,
    label_key: str | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    check: Check = "decode",
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Index:
    """Scan shards and write their index to the folder `out`.

    Args:
        source: what `sources.expand` takes.
        out: the index's folder. The very same index there is left alone, another only replaced with `overwrite`.
        block_size: samples a block, the unit of reading, at least 1.
        num_classes: labels must be below it; at most 2**24.
        label_key: the field of `.json` that holds the label; else `.cls`, or a field "label" of `.json`.
        split: of an `_info.json`.
        skip_bad: leave bad samples out and list them in the index, rather than stop at the first.
        check: "decode" every image, or read its "header" only.
        limit: index the first so many samples.
        workers: threads; the result doesn't depend on them.
        overwrite: replace another index.
        progress: called with (shards done, shards in all, samples found) now and then.

    Raises:
        ShardError: as `sources.expand` and `scan.scan`; the first in shard order.
        IndexFileError: `out` can't be written, or holds something else.
        ConfigError: a number is impossible.
    """
    numbers = {"block_size": block_size, "num_classes": num_classes, "limit": limit, "workers": workers}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError("an impossible number", where=name, found=value, allowed="1 or more")
    if num_classes is not None and num_classes > MAX_CLASSES:
        raise ConfigError("too many classes", where="num_classes", found=num_classes, allowed=f"up to {MAX_CLASSES}")
    path = Path(out).absolute()
    layout.refuse_foreign(path)
    shards = resolve(os.fspath(source), split)
    if not overwrite and limit is None:
        names = [name_of(url) for url in shards.urls]
        layout.refuse_other(path, block_size=block_size, num_classes=num_classes, names=names)
    rules = Rules(num_classes, label_key, check)
    scans = _scan_all(
        shards,
        rules=rules,
        block_size=block_size,
        skip_bad=skip_bad,
        limit=limit,
        workers=workers or os.cpu_count() or 1,
        progress=progress,
    )
    arrays = _join(scans)
    if not len(arrays["labels"]):
        raise ShardError("no sound sample in the shards", where=source)
    if label_key is not None and (arrays["labels"] == UNLABELLED).all():
        do = "Check --label-key"
        raise ShardError("no sample has a label", where=source, found=f"field {label_key!r} nowhere", do=do)
    document = {
        "block_size": block_size,
        "num_classes": num_classes,
        "shards": _table(scans),
        "skipped": [entry for found in scans for entry in found.skipped],
    }
    layout.save(path, document, arrays, overwrite)
    return Index.open(path, {found.name: found.url for found in scans if bare_url(found.url) != found.url})


def _scan_all(
    shards: Source,
    *,
    rules: Rules,
    block_size: int,
    skip_bad: bool,
    limit: int | None,
    workers: int,
    progress: Progress | None,
) -> list[Scan]:
    """Scan in rounds of a few shards a worker, so that a mistake in the first shard stops the work early."""
    done: list[Scan] = []
    left, size = limit, 4 * workers
    for at in range(0, len(shards.urls), size):
        urls = shards.urls[at : at + size]
        tasks = [delayed(_attempt, pure=False)(url, rules, block_size, skip_bad, left) for url in urls]
        results: tuple[Scan | ShardError, ...] = compute(*tasks, scheduler="threads", num_workers=workers)
        for url, result in zip(urls, results, strict=True):
            if isinstance(result, ShardError):
                raise result  # the first in shard order, whichever thread was quickest
            found = result
            if left is not None and len(found.keys) > left:
                found = scan(url, rules, block_size, skip_bad, left)
            if limit is None and not skip_bad and len(found.keys) != shards.lengths.get(url, len(found.keys)):
                what, said = "the shard is not as long as _info.json says", shards.lengths[url]
                raise ShardError(what, where=url, found=f"{len(found.keys)} samples", allowed=said)
            done.append(found)
            if left is not None:
                left -= len(found.keys)
                if left == 0:
                    return done
        if progress is not None:
            progress(len(done), len(shards.urls), sum(len(found.keys) for found in done))
    return done


def _attempt(url: str, rules: Rules, block_size: int, skip_bad: bool, limit: int | None) -> Scan | ShardError:
    try:
        return scan(url, rules, block_size, skip_bad, limit)
    except ShardError as error:
        return error


def _join(scans: list[Scan]) -> dict[str, np.ndarray]:
    def together(name: str) -> np.ndarray:
        return np.concatenate([found.arrays[name] for found in scans])

    names = (
        "labels",
        "image_start",
        "image_size",
        "block_start",
        "block_stop",
        "block_digest",
        "block_content",
    )
    arrays = {name: together(name) for name in names}
    keys = [np.frombuffer(b"".join(found.keys), np.uint8) for found in scans]
    arrays["keys"] = np.concatenate(keys)
    arrays["key_stop"] = np.cumsum([len(key) for found in scans for key in found.keys], dtype=np.int64)
    arrays["block_first"] = np.concatenate([[0], np.cumsum(together("block_rows"))])
    arrays["block_shard"] = np.repeat(np.arange(len(scans)), [len(found.arrays["block_rows"]) for found in scans])
    return arrays


def _table(scans: list[Scan]) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    first = first_block = 0
    for found in scans:
        samples, blocks = len(found.keys), len(found.arrays["block_rows"])
        place = {"first": first, "samples": samples, "first_block": first_block, "blocks": blocks}
        table.append(
            {"name": found.name, "url": bare_url(found.url), "size": found.size, "sha256": found.sha256, **place}
        )
        first, first_block = first + samples, first_block + blocks
    return table
