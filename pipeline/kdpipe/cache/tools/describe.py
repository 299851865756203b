"""What a cache holds, as JSON: identity, completeness, bytes by array, and statistics of the teacher's outputs."""

from collections.abc import Callable, Sequence
from typing import Any

from kdpipe._util.redact import redact
from kdpipe.cache.cache import Cache
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import describe
from kdpipe.cache.tools.label_statistics import ViewLabels
from kdpipe.cache.tools.statistics import Block, committed_blocks, read_statistics, with_logits
from kdpipe.errors import CacheError, KdpipeError
from kdpipe.shards import Index


def describe_cache(cache: Cache) -> dict[str, Any]:
    """Identity, completeness by shard and segment, bytes by array, the teacher's quality, modules."""
    segments: list[dict[str, Any]] = []
    for segment in cache.segments:
        names = cache.committed(segment)
        there = set(names)
        sizes = {f.name: 0 for f in segment.encoding.fields()}
        for name in names:
            for path, entry in cache.commits[segment.name, name]["files"].items():
                sizes[path.removeprefix(f"segments/{segment.name}/").split("/")[0]] += entry["bytes"]
        quality = cache.quality(segment)
        segments.append(
            {
                "name": segment.name,
                "span": describe(list(segment.views)),
                "encoding": segment.encoding.json(),
                "numerics": segment.numerics,
                "shards_done": len(names),
                "shards": len(cache.shards),
                "missing": [s["name"] for s in cache.shards if s["name"] not in there],
                "bytes": sizes,
                "bytes_per_view": sum(sizes.values()) / max(1, quality.views),
                **quality.means(),
            }
        )
    samples = sum(s["samples"] for s in cache.shards)
    return {
        "cache": redact(cache.store.url),
        "root": cache.root_digest(),
        "identity": cache.identity,
        "samples": samples,
        "complete_views": describe(cache.views()),
        "complete": all(not s["missing"] for s in segments) and bool(segments),
        "shards": _by_what_is_there(cache),
        "bytes": sum(sum(s["bytes"].values()) for s in segments),
        "parts": [{"name": name, "bytes": part["bytes"], **part["about"]} for name, part in cache.parts.items()],
        "segments": segments,
    }


def _by_what_is_there(cache: Cache) -> list[dict[str, Any]]:
    """Shards that have the same segments, together; in the order of the shards."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for shard in cache.shards:
        done = tuple(s.name for s in cache.segments if (s.name, shard["name"]) in cache.commits)
        missing = [s.name for s in cache.segments if s.name not in done]
        group = groups.setdefault(done, {"done": list(done), "missing": missing, "samples": 0, "names": []})
        group["samples"] += shard["samples"]
        group["names"].append(shard["name"])
    return list(groups.values())


def describe_outputs(
    cache: Cache,
    index_path: str | None,
    blocks: Sequence[Block],
    *,
    seed: int,
    top: int,
    on_samples: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Statistics of the teacher's outputs, read from the logits of these blocks; JSON-able.

    Args:
        cache: open.
        index_path: of its samples, for the labels; None for the index it was cached from. What needs labels is left
            out where that one can't be used, and `remark` gives the reason.
        blocks: from `choose_blocks` with this seed.
        seed: recorded where `blocks` are a part of the cache.
        top: confused pairs and contradicted labels to keep.
        on_samples: called with the number of samples after each block.

    Raises:
        KdpipeError: the given index is of other samples, or a chunk is damaged.
    """
    remark, labels = None, None
    try:
        labels = _labels(cache, index_path)
    except KdpipeError as e:
        if index_path:
            raise
        remark = f"without labels: {e}"
    if cache.segments and not with_logits(cache):
        remark = "features alone are kept: there are no logits to read"
    all_samples = sum(len(block.rows) for block in committed_blocks(cache))
    found = read_statistics(cache, blocks, labels, top=top, on_samples=on_samples)
    unknown = {} if labels else {"labelled": None, "mixed": None}
    classes = cache.classes or (labels.index.classes if labels else None)
    pairs = sorted(found.confusions.items(), key=lambda item: (-item[1], item[0]))[:top]
    return {
        "samples": found.samples,
        "of_samples": all_samples,
        "seed": seed if found.samples < all_samples else None,
        "labels": str(labels.index.path) if labels else None,
        "remark": remark,
        "views": [sums.summary() | unknown for sums in found.view_sums if sums.views],
        "unmixed": found.unmixed,
        "classes": classes,
        "confusions": [{"label": label, "predicted": predicted, "views": n} for (label, predicted), n in pairs],
        "contradictions": found.contradictions,
    }


def _labels(cache: Cache, index_path: str | None) -> ViewLabels:
    runs = read_provenance(cache.store)
    if not index_path and not runs:
        raise CacheError("provenance is missing", where=cache.store, do="Pass --index")
    return ViewLabels(cache, Index.open(index_path or runs[-1]["shards"]))
