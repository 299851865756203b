"""Which segments hold the views that a run is to make, and how the teacher of new ones is run."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from kdpipe._util.fingerprint import differences
from kdpipe.cache import Cache, Segment, add_segment
from kdpipe.cache.layout import padded_rows, runs
from kdpipe.caching.backend import Backend, TeacherSpec
from kdpipe.errors import IdentityError, TeacherError
from kdpipe.targets import Encoding
from kdpipe.teacher import KernelPlan
from kdpipe.views import View

# A task's arrays are in memory until they are written: more views than fit in this become several segments.
_TASK_BYTES = 2**30
_AS_STARTED = "Leave out teacher.form and teacher.layers, and it resumes as it was started; or start another cache"


def with_plan(
    backend: Backend,
    described: TeacherSpec,
    cache: Cache,
    encoding: Encoding,
    views: Sequence[View],
    batches: int | None,
) -> TeacherSpec:
    """How the teacher is run from here on: as the cache's last segments were made, if its form allows that.

    Then a resumed run, and one that adds views, needn't search, and its targets are as those before.

    Args:
        backend, described: who will do the tasks, as described before.
        cache, encoding, views: what is there, and what is to be.
        batches: of each view; None where the search has been.

    Raises:
        TeacherError: an unfinished segment can't be resumed as it was started.
    """
    ours = [s for s in cache.segments if s.encoding == encoding and set(s.views) & set(views)]
    unfinished = [s for s in ours if len(cache.committed(s)) < len(cache.shards)]
    missing = set(views) - {view for s in ours if s not in unfinished for view in s.views}
    if not missing:
        return described
    layers, count = requested_layers(described), len(missing) * (batches or 0)
    if layers is None:
        segments = [*cache.segments, *unfinished]
        like = [s.numerics for s in segments if not _differences_but_layers(described.numerics, s.numerics)]
        layers = like[-1].get("layers") if like else None
        if layers is not None and not unfinished:
            # A new segment may be made in another way.
            with suppress(TeacherError):
                return replace(described, numerics=backend.resolve_plan(layers, 0))
            layers = None
    if layers == described.numerics["layers"] or (layers is None and batches is None):
        return described
    return replace(described, numerics=backend.resolve_plan(layers, count))


def requested_layers(described: TeacherSpec) -> KernelPlan | None:
    """The kernels that the config names, none for the original ones; None for the fastest."""
    config = described.config
    return config["layers"] if config["form"] == "fastest" or config["layers"] else {}


def _differences_but_layers(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return differences({**ours, "layers": None}, {**theirs, "layers": None})


def segments_for(cache: Cache, encoding: Encoding, views: list[View], numerics: dict[str, Any]) -> list[Segment]:
    """The segments that hold these views: those there are, and a new one for each run of views beyond them."""
    there = [s for s in cache.segments if s.encoding == encoding and set(s.views) & set(views)]
    for segment in there:
        unfinished = len(cache.committed(segment)) < len(cache.shards)
        found = differences(numerics, segment.numerics)
        if unfinished and found:
            name, now, then = found[0]
            do = f"Go on with --set teacher.{name}={then}"
            raise IdentityError(
                f"a segment was started with another {name}: results may differ by rounding",
                where=f"{cache.store} segment {segment.name}",
                found=now,
                allowed=then,
                do=_AS_STARTED if name.startswith("layers") else do,
            )
    covered = {view for s in there for view in s.views}
    rows = padded_rows(cache.shards, int(cache.identity["block_size"]))
    for views_of_one in portions([v for v in views if v not in covered], rows, encoding):
        number = max((s.number for s in cache.segments), default=-1) + 1
        segment = Segment(number, encoding, views_of_one, numerics)
        add_segment(cache, segment)
        there.append(segment)
    return there


def portions(views: list[View], rows: int, encoding: Encoding) -> Iterator[tuple[View, ...]]:
    """Views as segments hold them, whose tasks have arrays of so many padded rows."""
    return runs(views, max(1, _TASK_BYTES // (rows * encoding.nbytes)))
