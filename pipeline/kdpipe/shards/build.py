"""Shards in, index out: scan in parallel, join in order, write once."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dask.base import compute
from dask.delayed import delayed

from kdpipe._util.redact import bare_url
from kdpipe.errors import ConfigError, KdpipeError, ShardError
from kdpipe.shards import layout
from kdpipe.shards.classes import CLASSES, MAX_CLASSES, ClassMap, load_class_map, require_same
from kdpipe.shards.index import Index, listing
from kdpipe.shards.labels import UNLABELLED, Check, Rules
from kdpipe.shards.problems import MOST, Problems, raise_all
from kdpipe.shards.samples import BadSample
from kdpipe.shards.scan import Scan, scan
from kdpipe.shards.sources import Source, is_local, resolve
from kdpipe.shards.tar import Damage, UnusableShard

Progress = Callable[[int, int, int], None]


def build_index(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    block_size: int = 256,
    num_classes: int | None = None,
    label_key: str | None = None,
    image_key: str | None = None,
    class_map: ClassMap | None = None,
    labels: Mapping[str, str] | None = None,
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
        num_classes: labels must be below it; at most 2**24. By default the length of the class list.
        label_key: where labels are: a suffix, or SUFFIX:FIELD of JSON; else `.cls`, or a field "label" of `.json`.
        image_key: suffix of the image where samples have several.
        class_map: names of the classes; by default the classes.json beside the shards, or in the folder above,
            as `kdpipe prepare` writes it.
        labels: by key, instead of those in the tars.
        split: of an `_info.json`.
        skip_bad: leave bad samples and shards out and list them in the index; otherwise `Problems` lists up to 20.
        check: "decode" every image, or read its "header" only.
        limit: index the first so many samples.
        workers: threads; the result doesn't depend on them.
        overwrite: replace another index.
        progress: called with (shards done, shards in all, samples found) now and then.

    Raises:
        ShardError: as `sources.expand`, `scan.scan` and `classes.load_class_map`.
        IdentityError: `class_map` has other names than the classes.json beside the shards.
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
    if shards.alt_label is not None and (label_key is not None or labels is not None):
        what = "the manifest names the labels by alt_label"
        raise ShardError(what, where=source, found=shards.alt_label, do="Leave --label-key and --labels out")
    classes = _classes(class_map, shards.urls)
    if classes is not None and classes.names is not None:
        if num_classes is not None and num_classes != len(classes.names):
            what = "as many classes as there are names"
            raise ConfigError(f"not {what}", where="num_classes", found=num_classes, allowed=len(classes.names))
        num_classes = len(classes.names)
    if not overwrite and limit is None:
        layout.refuse_other(path, block_size=block_size, num_classes=num_classes, names=sorted(shards.names))
    scans = _scan_all(
        shards,
        rules=Rules(num_classes, label_key, check, image_key, classes, labels, shards.alt_label),
        block_size=block_size,
        skip_bad=skip_bad,
        limit=limit,
        workers=workers or os.cpu_count() or 1,
        progress=progress,
    )
    used = [found for found in scans if found.usable]
    if not any(len(found.keys) for found in used):
        raise ShardError("no sound sample in the shards", where=source, do=_first_reason(scans))
    arrays = _join(used)
    unused = sum((found.unused for found in scans), Counter())
    if label_key is not None and (arrays["labels"] == UNLABELLED).all():
        do = "Check --label-key" + ("" if ":" in label_key else f"; a field of .json is json:{label_key}")
        do += f". Members not used: {listing(unused) or 'none'}"
        raise ShardError("no sample has a label", where=source, found=f"{label_key!r} nowhere", do=do)
    document = {
        "block_size": block_size,
        "num_classes": num_classes,
        "shards": _table(used),
        "skipped": [entry for found in scans for entry in found.skipped],
    }
    extra = {
        "classes": None if classes is None else classes.names,
        "left_out": sum(found.left_out for found in scans),
        "unused": dict(unused.most_common(64)),
    }
    layout.save(path, document | {name: value for name, value in extra.items() if value}, arrays, overwrite)
    return Index.open(path, {found.name: found.url for found in used if bare_url(found.url) != found.url})


def _classes(given: ClassMap | None, urls: Sequence[str]) -> ClassMap | None:
    if given is None:
        return beside(urls)
    try:
        own = beside(urls)
    except ShardError:  # something else of this name
        return given
    if own is not None:
        require_same(given.names, own.names, Path(urls[0]).parent / CLASSES, f"{CLASSES} beside the shards")
    return given


def beside(urls: Sequence[str]) -> ClassMap | None:
    """The class list that `kdpipe prepare` wrote into the folder of local shards, or into the folder above that.

    Raises:
        ShardError: the one beside the shards is no class list; one above may be something else.
    """
    folders = {Path(url).parent for url in urls if is_local(url)}
    if len(folders) != 1 or not all(is_local(url) for url in urls):
        return None
    [folder] = folders
    if (folder / CLASSES).is_file():
        return load_class_map(folder / CLASSES)
    try:
        return load_class_map(folder.parent / CLASSES) if (folder.parent / CLASSES).is_file() else None
    except ShardError:
        return None


def _first_reason(scans: list[Scan]) -> str | None:
    reasons = [entry["reason"] for found in scans for entry in found.skipped]
    return f"All {len(reasons)} were left out, the first because: {reasons[0]}" if reasons else None


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
    """Scan in rounds of a few shards a worker, until enough mistakes were found or enough samples."""
    done: list[Scan] = []
    errors: list[KdpipeError] = []
    left, size = limit, 4 * workers
    pairs = list(zip(shards.urls, shards.names, strict=True))
    for at in range(0, len(pairs), size):
        part = pairs[at : at + size]
        tasks = [delayed(_attempt, pure=False)(url, rules, block_size, skip_bad, left, name) for url, name in part]
        results: tuple[Scan | ShardError, ...] = compute(*tasks, scheduler="threads", num_workers=workers)
        for (url, name), result in zip(part, results, strict=True):
            if isinstance(result, ShardError):  # in shard order, whichever thread was quickest
                if not isinstance(result, Problems | BadSample | Damage | UnusableShard):
                    raise result  # it couldn't be read: that shows nothing about the shard
                errors += result.errors if isinstance(result, Problems) else [result]
                continue
            found = result
            if left is not None and len(found.keys) > left:
                found = scan(url, rules, block_size, skip_bad, left, name)
            count = len(found.keys) + found.left_out
            if limit is None and not skip_bad and count != shards.lengths.get(url, count):
                what, length = "the shard is not as long as in the manifest", shards.lengths[url]
                errors.append(ShardError(what, where=url, found=f"{count} samples", allowed=length))
            done.append(found)
            if left is not None:
                left -= len(found.keys)
                if left == 0:
                    break
        if progress is not None:
            progress(len(done), len(shards.urls), sum(len(found.keys) for found in done))
        if left == 0 or len(errors) >= MOST:
            break
    raise_all(errors)
    return done


def _attempt(
    url: str, rules: Rules, block_size: int, skip_bad: bool, limit: int | None, name: str
) -> Scan | ShardError:
    try:
        return scan(url, rules, block_size, skip_bad, limit, name)
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
