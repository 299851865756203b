"""Candidate encodings: what could be stored instead of what the settings give, so that a plan shows what it costs."""

from dataclasses import replace
from typing import Literal, get_args

from kdpipe.targets import Encoding, Feature, FeatureDtype

KS = (1, 5, 10, 16, 32, 64, 100)
RANKS = (64, 256)
_DTYPES: tuple[Literal["float16", "float32"], ...] = ("float16", "float32")


def candidate_encodings(chosen: Encoding) -> list[Encoding]:
    """The chosen one and its alternatives: logits from the smallest k to dense, then each feature."""
    classes, found = chosen.num_classes, []
    if chosen.kind != "none":
        ks = {k for k in KS if k < classes} | ({chosen.k} if chosen.kind == "topk" else set())
        dtype = chosen.dtype if chosen.kind == "topk" else "float16"
        found = [replace(chosen, kind="topk", k=k, dtype=dtype) for k in sorted(ks)]
        found += [replace(chosen, kind="dense", k=classes, dtype=d) for d in _DTYPES]
    for feature in chosen.features:
        found += [with_feature(chosen, other) for other in _alternatives(feature)]
    return list(dict.fromkeys(found))


def with_feature(encoding: Encoding, feature: Feature) -> Encoding:
    """The encoding with this feature instead of its own of that name."""
    return replace(encoding, pooled=feature) if feature.name == "pooled" else replace(encoding, map=feature)


def largest_rank(found: list[Encoding]) -> int | None:
    """Components that a calibration must have for all of them."""
    return max((e.map.rank for e in found if e.map is not None and e.map.rank is not None), default=None)


def _alternatives(chosen: Feature) -> list[Feature]:
    """In every dtype; a map also on PCA bases of several ranks, and on none, in its own dtype."""
    found = [replace(chosen, dtype=dtype) for dtype in get_args(FeatureDtype)]
    if chosen.name == "map":
        found += [replace(chosen, rank=rank) for rank in (None, *RANKS) if rank is None or rank < chosen.shape[-1]]
    return found
