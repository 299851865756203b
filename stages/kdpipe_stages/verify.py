"""`kdpipe verify`: check a cache's files, and its outputs against the live teacher."""

import json
from typing import TYPE_CHECKING, Any

import click

from kdpipe_stages.command import JSON
from kdpipe_stages.options import TRUST, Given, command, section

if TYPE_CHECKING:
    from kdpipe.verification.verify import Verification


@command("verify", "  kdpipe verify runs/cache.zarr --samples 2048")
@click.argument("cache")
@section(
    "Data",
    click.option("--index", "index_path", metavar="PATH", help="Index of the shards; by default that of the cache."),
)
@section(
    "Teacher",
    click.option("--weights", metavar="FILE", help="The teacher's weights; by default those of the cache."),
    click.option(
        "--teacher",
        "named",
        multiple=True,
        help="Model with which the cache was made, which then counts as trusted. Repeatable.",
    ),
    click.option("--device", help="Device on which to run the teacher; by default the kind that made the cache."),
    TRUST,
)
@section(
    "Checks",
    click.option("--integrity-only", is_flag=True, help="Check the files only; don't run the teacher."),
    click.option("--samples", default=512, help="Views to run again; at least one batch of each segment."),
    click.option("--seed", default=0, help="Seed of the choice of these views."),
    click.option(
        "--canary-tolerance",
        type=click.IntRange(0, 1),
        default=0,
        help="Levels of 255 by which canaries may differ when rendered on this machine.",
    ),
)
@section("Output", JSON)
def verify(
    cache: str,
    named: tuple[str, ...],
    as_json: bool,
    given: Given,
    **checks: Any,
) -> None:
    """Check a cache: every file, then a sample of its views against the live teacher. Exit code 1 if anything is wrong.

    Integrity: every checksum and every commit; nothing missing, nothing unexpected. Truth: canaries and a seeded
    sample of views, some of each segment, are rendered again and the teacher is run again; the cached targets must
    agree within the difference of two live runs. The cost of truncation and quantisation is reported separately.
    """
    from kdpipe.verification.verify import verify_cache

    trust = tuple(given.flags.get("teacher.trust", ()))
    found = verify_cache(cache, teachers=named, trust=trust, log=lambda text: click.echo(text, err=True), **checks)
    click.echo(json.dumps(found.json()) if as_json else _text(found))
    if not found.ok:
        raise SystemExit(1)


def _text(found: "Verification") -> str:
    whole, seen, t = found.integrity, found.canaries, found.truth
    lines = [f"integrity: {whole.files} files, {whole.bytes} bytes, {whole.commits} commits: {_verdict(whole.ok)}"]
    lines += [f"  {p['where']}: {p['what']}" for p in whole.problems]
    if seen is not None and t is not None:
        what = seen.get("what") or f"{seen['views']} views rendered again"
        lines.append(f"canaries: {what}: {_verdict(seen['ok'])}")
        for name, part in found.modules.items():
            lines.append(f"{name}: {part.get('what') or 'that of the teacher'}: {_verdict(part['ok'])}")
        lines.append(f"truth: {t['views']} views run again: {_verdict(t['ok'])}")
        lines += [f"  {line}" for line in (*t["reasons"], *t["remarks"])]
        lines += [f"  {line}" for line in _segments(t["segments"])]
        if t["control"] is not None:
            lines.append(f"  cached against live {_distances(t, ' nats', t['dtype'])}")
            lines.append(f"  mean KL: truncation {t['truncation']:.3g}, quantisation {t['quantisation']:.3g} nats")
        for name, f in t["features"].items():
            lines.append(f"  {name}: cached against live {_distances(f, ' of the largest value', t['dtype'])}")
            lines.append(f"  {name}: mean relative squared error {f['error']:.3g}")
        lines += [
            f"  {name}: {_calibration(known)}: {_verdict(known['ok'])}" for name, known in t["calibrations"].items()
        ]
        lines += [f"  {f['where']}, {f['group']}: {f['difference']:.3g}" for f in t["failures"]]
    elif whole.ok:
        lines.append("truth: not checked")
    return "\n".join(lines)


def _calibration(known: dict[str, Any]) -> str:
    if "what" in known:
        return str(known["what"])
    if known["held"] is None:
        return "agrees with live tokens" if known["checked"] else "too few views to check it"
    text = f"holds {100 * known['held']:.3g} % of the live variance, {100 * known['explained']:.3g} % as recorded"
    return text if known["checked"] else f"{text}; too few views to check it"


def _segments(names: dict[str, list[str]]) -> list[str]:
    """Which segments were checked, of those in the cache."""
    checked, present = names["checked"], names["present"]
    lines = [f"{len(checked)} of {len(present)} segments checked: {', '.join(checked)}"]
    left = [name for name in present if name not in checked]
    return [*lines, f"not checked, without a finished task: {', '.join(left)}"] if left else lines


def _distances(group: dict[str, Any], unit: str, dtype: str) -> str:
    if group["bound"] is None:  # of a teacher declared nondeterministic
        unit, bound = " on average of a batch", ""
    else:
        bound = f" (rounding in {dtype} explains {group['bound']:.3g})"
    return (
        f"{group['difference']:.3g}{unit} at most; live against live {group['control']:.3g}{bound}; "
        f"tolerance {group['tolerance']:.3g}"
    )


def _verdict(ok: bool) -> str:
    return "ok" if ok else "FAILED"
