"""Replay: render a sample of the cached views again, run the teacher again, and compare.

A live-versus-live control runs the same views in another order and beside other rows. The cache must be as close to the
live teacher as that, beyond what its encoding takes; and the control must be no larger than rounding explains, else the
teacher is not a function of its input and no cache of it can be checked value by value: see `determinism`.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from kdpipe._util.machine import cores
from kdpipe.cache import ArrayReader, Cache, Segment
from kdpipe.cache.modules import read_calibration
from kdpipe.caching.determinism import compute_dtype, run_again
from kdpipe.caching.identity import is_nondeterministic
from kdpipe.shards import BlockReader, Index
from kdpipe.shards.index import Shard
from kdpipe.targets import GROUPS, Calibration, Feature
from kdpipe.teacher import Teacher
from kdpipe.verification.averages import BATCHES
from kdpipe.verification.bases import CalibrationTruth
from kdpipe.verification.compare import Comparison, compare_feature, compare_logits
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import paired_index, render_rows
from kdpipe.views.draws import permutation

# A teacher's batch: rows of the index, within one block, of one view of a segment.
Batch = tuple[Segment, View, range]

_DISTANCES = ("control", "bound", "tolerance", "difference")
_LOST = ("truncation", "quantisation")


def check_truth(
    cache: Cache,
    index: Index,
    config: ViewsConfig,
    teacher: Teacher,
    segments: Sequence[Segment],
    *,
    samples: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare cached targets with the live teacher on a seeded sample of committed views.

    Args:
        cache, index, config, teacher: matching, as checked by the caller.
        segments: those to choose from, cached with the teacher's present numerics.
        samples: views to compare, taken as batches of the teacher's size so that its numerics are the cache's. At
            least one batch of each segment is taken, which may be more.
        seed: of the choice.

    Returns:
        `views`; `control`: the largest difference between two live runs, nats (of log-probs); `bound`: the largest
        that rounding explains; `tolerance` derived from both; `difference`: the largest difference between cached
        and live values beyond their rounding; `quantisation` and `truncation`: mean KL in nats that rounding and
        top-k each cost; None, these six, where no logits are kept. Of a teacher declared nondeterministic the
        distances are means over batches, see `Comparison`, and `bound` is None.
        `features`: of each that is, by name, `views`, and the first four relative
        to its largest value, of a map on a basis of its projections; `error`: mean relative squared error of what
        reading gives back. `segments`: names of those `checked` and of those `present` to choose from, of which one
        without a finished task in the index can't be checked. `calibrations`: of each map's, by name, see
        `CalibrationTruth.json`. `dtype`: of the teacher's products. `failures`: a list of views beyond the tolerance;
        `reasons`: why nothing can be right, a list of sentences; `remarks`: what was not compared; `ok`.
    """
    config = config.cached
    reader, arrays = BlockReader(paired_index(index, config)), ArrayReader(cache)
    batch, dtype, declared = teacher.config.batch_size, compute_dtype(teacher.numerics()), is_nondeterministic(cache)
    batches = _choose(cache, segments, index, batch, max(samples, BATCHES * batch) if declared else samples, seed)
    totals = {group: Comparison(group, dtype, declared) for group in GROUPS}
    calibrations: dict[str, CalibrationTruth] = {}
    # One segment after another: its features are requested as they were when it was made.
    with ThreadPoolExecutor(cores()) as pool:
        for segment, view, rows in sorted(batches, key=lambda batch: batch[0].number):
            encoding, shard = segment.encoding, index.shard_of(rows.start)
            teacher.set_features([feature.name for feature in encoding.features])
            rendered = render_rows(reader, config, rows, [view], cache.size, pool)
            pixels, erased = rendered.pixels[0], rendered.erased[0]
            # What depends on the batch alone is the same in the same batch, and was when it was cached.
            rerun = teacher(pixels, erased) if declared else run_again(teacher, pixels, erased)
            runs = teacher(pixels, erased), rerun
            stored = arrays.read(segment, shard.name, view, rows.start - shard.first, rows.stop - shard.first)
            places = [f"{shard.name} key {index.key(row)} view {view}" for row in rows]
            if encoding.kind != "none":
                labels = torch.from_numpy(rendered.labels[0])
                compare_logits(totals["logits"], encoding, stored, runs, labels, places)
            calibration = read_calibration(cache, encoding)
            for feature in encoding.features:
                first, again = (run.parts()[feature.name] for run in runs)
                if feature.calibration is not None and calibration is not None:
                    known = calibrations.setdefault(feature.calibration, _of(cache, feature, calibration))
                    if known.misfit is not None:
                        continue
                    known.add(first.movedim(1, -1), again.movedim(1, -1))
                compare_feature(totals[feature.name], feature, stored, (first, again), calibration, places)
    reader.close()
    found = {group: total.json() for group, total in totals.items() if total.views}
    logits = dict.fromkeys((*_DISTANCES, *_LOST)) | found.pop("logits", {})
    reasons, remarks = ([s for total in totals.values() if (s := getattr(total, w))] for w in ("reason", "remark"))
    failures = [failure for total in totals.values() for failure in total.failures]
    views = sum(len(rows) for _, _, rows in batches)
    of_maps = {name: known.json() for name, known in sorted(calibrations.items())}
    sound = all(known["ok"] for known in of_maps.values())
    looked_at = {segment.name for segment, _, _ in batches}
    present = [segment.name for segment in segments]
    return {
        **logits,
        "views": views,
        "segments": {"checked": [name for name in present if name in looked_at], "present": present},
        "features": found,
        "calibrations": of_maps,
        "dtype": dtype,
        "failures": failures,
        "reasons": reasons,
        "remarks": remarks,
        "ok": views > 0 and sound and not failures and not reasons,
    }


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several checks as one: the worst of each, means over all views."""
    features = {name for part in parts for name in part["features"]}
    return {
        **_joined([{**p, "views": 0} if p["control"] is None else p for p in parts], _LOST),
        "views": sum(p["views"] for p in parts),
        # Names begin with the segments' numbers.
        "segments": {
            which: sorted({n for p in parts for n in p["segments"][which]}) for which in ("checked", "present")
        },
        "features": {
            name: _joined([p["features"][name] for p in parts if name in p["features"]], ("error",))
            for name in GROUPS
            if name in features
        },
        "calibrations": _worst(known for p in parts for known in p["calibrations"].items()),
        "dtype": "/".join(dict.fromkeys(p["dtype"] for p in parts)),
        **{name: [f for p in parts for f in p[name]] for name in ("failures", "reasons", "remarks")},
        "ok": all(p["ok"] for p in parts),
    }


def _joined(parts: Sequence[dict[str, Any]], means: Sequence[str]) -> dict[str, Any]:
    """Of one group, where parts of 0 views don't count."""
    parts = [p for p in parts if p["views"]] or list(parts[:1])
    views = sum(p["views"] for p in parts)
    found = {n: sum(p[n] * p["views"] for p in parts) / views if views else None for n in means}
    worst = {n: max((p[n] for p in parts if p[n] is not None), default=None) for n in _DISTANCES}
    return {"views": views, **worst, **found}


def _worst(found: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each calibration the check in which it was wrong, else one in which it was checked, else any."""
    return dict(sorted(found, key=lambda item: (item[0], not item[1]["ok"], item[1]["checked"])))


def _of(cache: Cache, feature: Feature, calibration: Calibration) -> CalibrationTruth:
    assert feature.calibration is not None
    return CalibrationTruth(feature, calibration, int(cache.parts[feature.calibration]["about"]["views"]))


def _choose(
    cache: Cache, segments: Sequence[Segment], index: Index, batch: int, samples: int, seed: int
) -> list[Batch]:
    """Seeded teacher batches among the committed tasks whose shard the index has: one of each segment, then any.

    An evaluation view is a segment of its own, so each of them is among the first. They are more than `samples`
    views where there are more segments than that allows: a segment that is never checked may hold anything.
    """
    shards = {shard.name: shard for shard in index.shards}
    by_segment = [[(s, shards[name]) for name in cache.committed(s) if name in shards] for s in segments]
    chosen = [_draw(tasks, index, batch, seed, f"of {tasks[0][0].name}") for tasks in by_segment if tasks]
    taken, seen = sum(len(rows) for _, _, rows in chosen), {(s.name, view, rows) for s, view, rows in chosen}
    tasks = [task for of_one in by_segment for task in of_one]
    for turn in range(64 * len(tasks)):
        if taken >= samples:
            break
        segment, view, rows = _draw(tasks, index, batch, seed, turn)
        if (segment.name, view, rows) not in seen:
            seen.add((segment.name, view, rows))
            chosen.append((segment, view, rows))
            taken += len(rows)
    return chosen


def _draw(tasks: Sequence[tuple[Segment, Shard]], index: Index, batch: int, seed: int, turn: object) -> Batch:
    """One batch of one of the tasks, which belongs to the seed and the turn."""

    def below(count: int, what: str) -> int:
        return int(permutation(count, what, seed, turn)[0])

    segment, shard = tasks[below(len(tasks), "truth")]
    view = segment.views[below(len(segment.views), "view")]
    rows = index.rows(shard.first_block + below(shard.blocks, "block"))
    start = rows.start + batch * below(-(-len(rows) // batch), "part")
    return segment, view, range(start, min(start + batch, rows.stop))
