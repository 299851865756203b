"""`kdpipe verify`: is the cache whole, and does it tell the truth?"""

import json
from collections.abc import Callable
from typing import Any

import click

from kdpipe._util.fingerprint import fingerprint
from kdpipe.cache import Cache, Segment, Store, require_identity
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import PROVENANCE
from kdpipe.caching import check_canaries, make_identity
from kdpipe.caching.identity import is_nondeterministic
from kdpipe.errors import CacheError, IdentityError, KdpipeError, TeacherError
from kdpipe.shards import Index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.verify import check_integrity, check_truth
from kdpipe.verify.modules import check_parts
from kdpipe.verify.replay import join
from kdpipe.views import ViewsConfig
from kdpipe_stages import settings as params

# Of a segment's numerics, what a teacher can be told.
_HOW = ("form", "layers", "batch_size", "amp_dtype", "channels_last", "threads")


@click.command()
@click.argument("cache")
@click.option("--index", "index_path", help="Index of the shards [default: the one it was cached from].")
@click.option("--weights", help="The teacher's weights [default: those it was cached with].")
@click.option("--teacher", "named", multiple=True, help="The model it was cached with, to accept its code; repeatable.")
@params.trust_option
@click.option("--integrity-only", is_flag=True, help="Check the bytes; don't run the teacher.")
@click.option(
    "--samples", default=512, show_default=True, help="Views to render and run again; at least a batch a segment."
)
@click.option("--seed", default=0, show_default=True, help="Choice of those views.")
@click.option(
    "--canary-tolerance",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="Levels by which canaries may differ when rendered here.",
)
@click.option("--device", default=None, help="Where to run the teacher [default: as cached].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(
    cache: str,
    index_path: str | None,
    weights: str | None,
    named: tuple[str, ...],
    trust: tuple[str, ...],
    integrity_only: bool,
    samples: int,
    seed: int,
    canary_tolerance: Any,
    device: str | None,
    as_json: bool,
) -> None:
    """Check a cache: integrity of every file, then truth on a sample of views. Exit 1 if anything is wrong.

    Integrity: every checksum and every commit; nothing missing, nothing foreign. Truth: canaries and a seeded
    sample of views, some of each segment, are rendered again, the teacher is run again, and the cached targets must
    agree within the difference of two live runs; what truncation and quantisation cost is reported apart.
    """
    store = Store(cache)
    problems, counts = check_integrity(store)
    report: dict[str, Any] = {
        "cache": cache,
        "integrity": {**counts, "problems": problems, "ok": not problems},
    }
    if not integrity_only and not problems:
        report |= _truth(store, index_path, weights, named, trust, samples, seed, canary_tolerance, device)
    report["ok"] = all(part["ok"] for part in report.values() if isinstance(part, dict) and "ok" in part)
    click.echo(json.dumps(report) if as_json else _text(report))
    if not report["ok"]:
        raise SystemExit(1)


def _truth(
    store: Store,
    index_path: str | None,
    weights: str | None,
    named: tuple[str, ...],
    trust: tuple[str, ...],
    samples: int,
    seed: int,
    canary_tolerance: Any,
    device: str | None,
) -> dict[str, Any]:
    cache = Cache(store)
    _require_named(cache, named)
    runs = read_provenance(store)
    if not runs:
        raise CacheError("provenance is missing", where=store, do="Pass --integrity-only")
    where, last = f"{store}/{PROVENANCE}", runs[-1]
    if index_path is None and "merged" in last:
        raise CacheError("merged from several caches: no index is known", where=store, do="Pass --index")
    index = Index.open(index_path or last["shards"]).limit(last["samples"])
    index.verify()
    config = cache.views_config
    parts, of_teacher = [], None
    for segments in _by_numerics(cache):
        settings = {
            **last["teacher"],
            "weights": weights or last["teacher"].get("weights"),
            **{k: segments[0].numerics.get(k) for k in _HOW},
            "device": device or segments[0].numerics.get("device"),
        }
        teacher = _teacher(TeacherConfig.from_file(settings, where, (*named, *trust)), cache.num_classes)
        require_identity(store, _identity(cache, index, config, teacher), cache.identity)
        if of_teacher is None:
            of_teacher = check_parts(cache, teacher)
        for alike in _by(segments, lambda s: [f.name for f in s.encoding.features]):
            parts.append(check_truth(cache, index, config, teacher, alike, samples=samples, seed=seed))
    if not parts:
        raise CacheError(
            "nothing is cached yet", where=store, do="Repeat kdpipe cache-teacher, or pass --integrity-only"
        )
    try:
        canaries = {**check_canaries(cache, index, config, canary_tolerance), "ok": True}
    except KdpipeError as e:
        canaries = {"ok": False, "what": str(e)}
    of_teacher = of_teacher or {}
    report = {"parts": {**of_teacher, "ok": all(part["ok"] for part in of_teacher.values())}} if of_teacher else {}
    truth = join(parts)
    # Also those without a finished task, of which nothing was asked.
    truth["segments"]["present"] = [segment.name for segment in cache.segments]
    return {"canaries": canaries, **report, "truth": truth}


def _require_named(cache: Cache, named: tuple[str, ...]) -> None:
    """Refuse a --teacher that isn't the cache's."""
    teacher = cache.identity["teacher"]
    own = [one["model"] for one in teacher.get("members", [teacher])]
    for name in named:
        if name not in own:
            what = "the cache was made with another teacher"
            raise IdentityError(what, where="--teacher", found=name, allowed=", ".join(own))


def _identity(cache: Cache, index: Index, config: ViewsConfig, teacher: Teacher) -> dict[str, Any]:
    declared = is_nondeterministic(cache)
    return make_identity(index, config, teacher.identity(), cache.size, nondeterministic=declared)


def _teacher(config: TeacherConfig, num_classes: int) -> Teacher:
    """The teacher as it was run; its layers plain where this machine can't compute them as they were."""
    try:
        return Teacher(config, num_classes)
    except TeacherError as e:
        if not config.layers:
            raise
        teacher = Teacher(config.model_copy(update={"layers": {}}), num_classes)
        click.echo(f"verify: run plainly here, so rounding may differ: {e}", err=True)
        return teacher


def _by_numerics(cache: Cache) -> list[list[Segment]]:
    """Segments with a finished task, together where the teacher was run in the same way."""
    return _by([segment for segment in cache.segments if cache.committed(segment)], lambda s: s.numerics)


def _by(segments: list[Segment], what: Callable[[Segment], Any]) -> list[list[Segment]]:
    """Segments together that have the same of something."""
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(fingerprint(what(segment)), []).append(segment)
    return list(groups.values())


def _text(report: dict[str, Any]) -> str:
    whole = report["integrity"]
    lines = [
        f"integrity: {whole['files']} files, {whole['bytes']} bytes, {whole['commits']} commits: {_verdict(whole)}"
    ]
    lines += [f"  {p['where']}: {p['what']}" for p in whole["problems"]]
    if "canaries" in report:
        seen = report["canaries"]
        lines.append(f"canaries: {seen.get('what') or str(seen['views']) + ' views rendered again'}: {_verdict(seen)}")
        for name, part in report.get("parts", {}).items():
            if name != "ok":
                lines.append(f"{name}: {part.get('what') or 'that of the teacher'}: {_verdict(part)}")
        t = report["truth"]
        lines.append(f"truth: {t['views']} views run again: {_verdict(t)}")
        lines += [f"  {line}" for line in (*t["reasons"], *t["remarks"])]
        lines += [f"  {line}" for line in _segments(t["segments"])]
        if t["control"] is not None:
            lines.append(f"  cached against live {_distances(t, ' nats', t['dtype'])}")
            lines.append(f"  mean KL: truncation {t['truncation']:.3g}, quantisation {t['quantisation']:.3g} nats")
        for name, f in t["features"].items():
            lines.append(f"  {name}: cached against live {_distances(f, ' of the largest value', t['dtype'])}")
            lines.append(f"  {name}: mean relative squared error {f['error']:.3g}")
        lines += [f"  {name}: {_calibration(known)}: {_verdict(known)}" for name, known in t["calibrations"].items()]
        lines += [f"  {f['where']}, {f['group']}: {f['difference']:.3g}" for f in t["failures"]]
    elif not whole["problems"]:
        lines.append("truth: not checked")
    return "\n".join(lines)


def _calibration(known: dict[str, Any]) -> str:
    if "what" in known:
        return str(known["what"])
    if known["held"] is None:
        return "as live tokens are" if known["checked"] else "too few views to judge it"
    said = f"holds {100 * known['held']:.3g} % of the live variance, {100 * known['explained']:.3g} % as recorded"
    return said if known["checked"] else f"{said}; too few views to judge it"


def _segments(names: dict[str, list[str]]) -> list[str]:
    """Which were looked at, of those that there are."""
    checked, present = names["checked"], names["present"]
    lines = [f"{len(checked)} of {len(present)} segments checked: {', '.join(checked)}"]
    left = [name for name in present if name not in checked]
    return [*lines, f"not checked, for they have no finished task: {', '.join(left)}"] if left else lines


def _distances(group: dict[str, Any], unit: str, dtype: str) -> str:
    if group["bound"] is None:  # of a teacher declared nondeterministic
        unit, bound = " on average of a batch", ""
    else:
        bound = f" (rounding in {dtype} explains {group['bound']:.3g})"
    return (
        f"{group['difference']:.3g}{unit} at most; live against live {group['control']:.3g}{bound}; "
        f"tolerance {group['tolerance']:.3g}"
    )


def _verdict(part: dict[str, Any]) -> str:
    return "ok" if part["ok"] else "FAILED"
