"""Which of a cache's segments serve a training run's request."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from kdpipe.cache.cache import Cache
from kdpipe.cache.layout import Segment, in_order
from kdpipe.errors import CacheError, TargetsError
from kdpipe.targets import FEATURE_FLAGS, ArrayField, Encoding
from kdpipe.views import View

HEAD, TAIL = "head", "tail"


@dataclass(frozen=True)
class CacheRequest:
    """What to read of a cache.

    Attributes:
        logits: log-probabilities, be they of the top k.
        dense: each class's own.
        pooled, map: features.
        head, tail: parts of the teacher with their weights.
    """

    logits: bool = True
    dense: bool = False
    pooled: bool = False
    map: bool = False
    head: bool = False
    tail: bool = False

    @classmethod
    def of(cls, needs: object) -> Self:
        """What something needs that has attributes of these names, as a loss's needs do."""
        return cls(**{field.name: getattr(needs, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class ViewSource:
    """One encoding of a cache, the groups of fields that are read from it, and its complete views: segment by view."""

    encoding: Encoding
    groups: tuple[str, ...]
    segments: dict[View, Segment]

    @property
    def fields(self) -> tuple[ArrayField, ...]:
        """The arrays that are read."""
        return self.encoding.fields(self.groups)


@dataclass(frozen=True)
class Selection:
    """What is read.

    Attributes:
        sources: one or more; a group of fields comes from one of them.
        logits: the encoding of the log-probabilities; None where they are not read.
        by_head: whether log-probabilities are computed from pooled features.
        unread: names of other encodings that would have served, over no fewer views.
    """

    sources: tuple[ViewSource, ...]
    logits: Encoding | None
    by_head: bool = False
    unread: tuple[str, ...] = ()

    @property
    def views(self) -> list[View]:
        """Those that all sources have: numbers in order, then evaluation views."""
        first, *others = (set(source.segments) for source in self.sources)
        return in_order(first.intersection(*others))

    def json(self) -> list[dict[str, Any]]:
        """Encodings and what is read of them."""
        return [{**source.encoding.json(), "groups": list(source.groups)} for source in self.sources]


# What of an encoding is read, for logits and for a feature; and whether the logits are the head's.
Choice = tuple[Encoding, str, bool]


def select(
    cache: Cache,
    shards: list[str],
    request: CacheRequest,
    only: Encoding | None = None,
    resumed: list[dict[str, Any]] | None = None,
) -> Selection:
    """The encodings with most complete views that serve a request; the smallest among equals.

    Log-probabilities from pooled features in int8 come last.

    Args:
        cache: open.
        shards: that must be complete.
        request: what to read.
        only: the encoding to read from, where a record names it.
        resumed: `Selection.json` of the run to resume, which comes first whatever was added to the cache since.

    Raises:
        CacheError: no view is complete.
        TargetsError: the cache keeps too little.
    """
    found: dict[Encoding, dict[View, Segment]] = {}
    for segment in cache.segments:
        if cache.complete(segment, shards) and only in (None, segment.encoding):
            for view in segment.views:
                found.setdefault(segment.encoding, {}).setdefault(view, segment)
    if not found:
        shards_of: dict[str, set[str]] = {}
        for segment in cache.segments:
            shards_of.setdefault(segment.encoding.name, set()).update({*cache.committed(segment)} & {*shards})
        counts = ", ".join(f"{name} of {len(names)} shards" for name, names in shards_of.items()) or "nothing"
        raise CacheError(
            "no view is cached for all the shards",
            where=cache.store,
            found=counts,
            allowed=f"one encoding of all {len(shards)}",
            do="Repeat kdpipe cache-teacher, which resumes, with the flags of one of them, or train on an index of the"
            " finished shards",
        )
    for name in (HEAD, TAIL):
        if getattr(request, name) and name not in cache.parts:
            _refuse(
                cache, f"the teacher's {name}", "no such part", "--pooled float16" if name == HEAD else "--last-stage"
            )
    best: tuple[tuple[Any, ...], Selection] | None = None
    fit = list(_choices(cache, request, found))
    for choices in itertools.product(*fit):
        selection = _joined(choices, found)
        size = sum(field.nbytes for source in selection.sources for field in source.fields)
        wider = sum(source.encoding.dtype != "float16" for source in selection.sources)
        # Rounded to int8, features give worse logits than were kept: where there are no others.
        sound = not (selection.by_head and selection.logits and _rounded(selection.logits))
        rank = (selection.json() == resumed, len(selection.views), sound, -size, -wider)
        if selection.views and (best is None or rank > best[0]):
            best = rank, selection
    if best is None:
        groups = {e.name: sorted(map(str, v)) for e, v in found.items()}
        raise CacheError(
            "no view has all that this loss needs",
            where=cache.store,
            found="; ".join(f"{name}: views {', '.join(views)}" for name, views in groups.items()),
            do="Cache what is missing over the same views: kdpipe cache-teacher with the same --views",
        )
    selection, views = best[1], set(best[1].views)
    read = {source.encoding for source in selection.sources}
    others = {e: None for choices in fit for e, _, _ in choices if e not in read and views <= set(found[e])}
    return replace(selection, unread=tuple(e.name for e in others))


def _choices(cache: Cache, request: CacheRequest, found: dict[Encoding, dict[View, Segment]]) -> Iterator[list[Choice]]:
    if request.logits or request.dense:
        fit: list[Choice] = [
            (e, "logits", False) for e in found if "logits" in e.groups and (e.dense or not request.dense)
        ]
        if HEAD in cache.parts:
            fit += [(e, "pooled", True) for e in found if "pooled" in e.groups]
        if not fit:
            names = ", ".join(sorted(e.name for e in found))
            what = "every class and the cache keeps the top k" if request.dense else "logits and the cache keeps none"
            _refuse(cache, what, names, "--targets dense, or --pooled float16")
        yield fit
    for name in ("pooled", "map"):
        if getattr(request, name):
            having: list[Choice] = [(e, name, False) for e in found if name in e.groups]
            if not having:
                held = ", ".join(sorted(e.name for e in found))
                _refuse(cache, f"the teacher's {name} feature", held, f"--targets none {FEATURE_FLAGS[name]} float16")
            yield having


def _rounded(encoding: Encoding) -> bool:
    return encoding.pooled is not None and encoding.pooled.dtype == "int8"


def _joined(choices: tuple[Choice, ...], found: dict[Encoding, dict[View, Segment]]) -> Selection:
    groups: dict[Encoding, set[str]] = {}
    for encoding, group, _ in choices:
        groups.setdefault(encoding, set()).add(group)
    sources = tuple(
        ViewSource(e, tuple(g for g in ("logits", "pooled", "map") if g in taken), found[e])
        for e, taken in groups.items()
    )
    of_logits = [(e, by_head) for e, group, by_head in choices if group == "logits" or by_head]
    logits, by_head = of_logits[0] if of_logits else (None, False)
    return Selection(sources, logits, by_head)


def _refuse(cache: Cache, what: str, found: str, flags: str) -> None:
    other = "; kd, nkd and dkd can use temperature 1" if "every class" in what else ""
    raise TargetsError(
        f"this loss needs {what}",
        where=cache.store,
        found=found,
        do=f"Add it over the same views: kdpipe cache-teacher {flags}{other}",
    )
