"""What `kdpipe inspect` shows on a terminal."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kdpipe._util.redact import showable
from kdpipe.cache.tools.view_statistics import BINS, calibration_error

_BAR = 24
_NAMES = 3  # of missing shards
_ROWS = 24  # of views or of groups of shards


def print_records(report: dict[str, Any]) -> None:
    """Identity, completeness and bytes."""
    console, report = _console(), showable(report)
    identity = report["identity"]
    teacher, views = identity["teacher"], identity["views"]
    facts = Table(show_header=False, box=None)
    rows = {
        "cache": report["cache"],
        "root": report["root"],
        "samples": f"{report['samples']} in {len(identity['shards'])} shards, blocks of {identity['block_size']}",
        "teacher": f"{teacher['model']}, {teacher['num_classes']} classes, weights {teacher['weights'][:16]}",
        "rendered": f"{identity['render_size']} px, {views['interpolation']}, scale {views['scale']}, "
        f"seed {views['seed']}, policy {views['version']}",
        "complete views": report["complete_views"] or "none",
        "complete": "yes" if report["complete"] else "no",
        "bytes": f"{report['bytes']}, {report['bytes'] / max(1, report['samples']):.1f} a sample",
    }
    for name, value in rows.items():
        facts.add_row(name, str(value))
    console.print(facts)
    table = Table("segment", "views", "shards", "array", "bytes", "bytes a view", "top-1 %", "top-5 %", "retained")
    table.add_column("loss, nats")
    table.add_column("error")
    for s in report["segments"]:
        for i, (array, size) in enumerate(s["bytes"].items()):
            first = (s["name"], s["span"], f"{s['shards_done']}/{s['shards']}") if i == 0 else ("", "", "")
            cells = (_percent(s["teacher_top1"]), _percent(s["teacher_top5"]), _number(s["retained_mass"], ".5f"))
            last = (*cells, _number(s["encoding_loss"], ".2g")) if i == 0 else ("",) * 4
            error = _number(s.get(f"{array}_error"), ".2g")
            table.add_row(*first, array, str(size), f"{size / max(1, s['views']):.1f}", *last, error)
    console.print(table)
    if report["parts"]:
        _print_parts(console, report["parts"])
    if report["segments"] and not report["complete"]:
        _print_missing(console, report["shards"])


def print_statistics(found: dict[str, Any]) -> None:
    """Statistics of the teacher's outputs, by view and altogether."""
    console, found = _console(), showable(found)
    part = f" of {found['of_samples']}, chosen with seed {found['seed']}" if found["seed"] is not None else ""
    console.print(f"Read from the arrays: {found['samples']} samples{part}.")
    if found["remark"]:
        console.print(found["remark"], markup=False, soft_wrap=True)
    if not found["views"]:
        return
    _print_views(console, found["views"])
    _print_mass(console, found["views"])
    augmented = [v for v in found["views"] if isinstance(v["view"], int)]
    evaluation = [v for v in found["views"] if not isinstance(v["view"], int)]
    for name, views in (("augmented views", augmented), ("evaluation views", evaluation)):
        if views:
            _print_confidence(console, name, views)
            _print_entropy(console, name, views)
    if found["confusions"]:
        table = Table("label", "predicted", "views", "% of views", title="most confused", title_justify="left")
        for c in found["confusions"]:
            share = f"{100 * c['views'] / found['unmixed']:.2f}"
            table.add_row(_class(found, c["label"]), _class(found, c["predicted"]), str(c["views"]), share)
        console.print(table)
    if found["contradictions"]:
        table = Table("shard", "key", "label", "predicted", "p", "p of label", "views")
        table.title, table.title_justify = (
            "the label contradicted: probability as the mean over a sample's views",
            "left",
        )
        for c in found["contradictions"]:
            classes = (_class(found, c["label"]), _class(found, c["predicted"]))
            table.add_row(c["shard"], c["key"], *classes, f"{c['p']:.4f}", f"{c['p_label']:.2g}", str(c["views"]))
        console.print(table)
    if found["confusions"] and any(v["mixed"] for v in found["views"]):
        console.print("Mixed views: their label is that of the larger share; the last two tables leave them out.")


def _print_parts(console: Console, parts: Sequence[dict[str, Any]]) -> None:
    table = Table("part", "bytes", "what it is", title="stored once", title_justify="left")
    for part in parts:
        if "explained" in part:
            basis = "mean and deviation of each channel"
            if part["rank"] is not None:
                basis = f"{part['rank']} components with {100 * part['explained']:.2f} % of the variance"
            what = f"{basis}, of {part['tokens']} tokens of {part['views']} views"
        else:
            layers = [part[name] for name in ("stage", "norm") if part.get(name)]
            what = f"of weights {part['teacher'][:16]}" + (f": {' and '.join(layers)}" if layers else "")
        table.add_row(part["name"], str(part["bytes"]), what)
    console.print(table)


def _print_missing(console: Console, groups: Sequence[dict[str, Any]]) -> None:
    table = Table("shards", "samples", "missing", "which", title="unfinished", title_justify="left")
    unfinished = [g for g in groups if g["missing"]]
    for g in unfinished[:_ROWS]:
        more = f", ... {g['names'][-1]}" if len(g["names"]) > _NAMES else ""
        missing = ", ".join(g["missing"]) if g["done"] else "everything"
        table.add_row(str(len(g["names"])), str(g["samples"]), missing, ", ".join(g["names"][:_NAMES]) + more)
    console.print(table)
    _print_rest(console, len(unfinished))


def _print_views(console: Console, views: Sequence[dict[str, Any]]) -> None:
    table = Table("segment", "view", "samples", "labelled", "mixed %", "top-1 %", "top-5 %", "ECE %")
    table.add_column("confidence %")
    table.add_column("entropy, nats")
    for v in views[:_ROWS]:
        known = (str(v["labelled"]), f"{100 * v['mixed'] / v['views']:.1f}") if v["labelled"] is not None else ("", "")
        scores = (_percent(v["teacher_top1"]), _percent(v["teacher_top5"]), _percent(v["ece"]))
        means = (_percent(v["mean_confidence"]), f"{v['mean_entropy']:.4f}")
        table.add_row(v["segment"], str(v["view"]), str(v["views"]), *known, *scores, *means)
    console.print(table)
    _print_rest(console, len(views))


def _print_mass(console: Console, views: Sequence[dict[str, Any]]) -> None:
    """Means over each segment's views."""
    segments: dict[str, list[dict[str, Any]]] = {}
    for v in views:
        segments.setdefault(v["segment"], []).append(v)
    ks = sorted({int(k) for v in views for k in v["retained_mass"]})
    table = Table("segment", *(f"k = {k}" for k in ks), title="probability of the first k", title_justify="left")
    for name, of_one in list(segments.items())[:_ROWS]:
        total = sum(v["views"] for v in of_one)
        cells = []
        for k in map(str, ks):
            there = [v["retained_mass"][k] * v["views"] for v in of_one if k in v["retained_mass"]]
            cells.append(f"{sum(there) / total:.5f}" if there else "")
        table.add_row(name, *cells)
    if ks:
        console.print(table)
    _print_rest(console, len(segments))


def _print_confidence(console: Console, name: str, views: Sequence[dict[str, Any]]) -> None:
    counts = np.sum([v["confidence"] for v in views], axis=0)
    bins = np.sum([v["calibration"] for v in views], axis=0)
    labelled = bool(bins.sum())
    error = f"; calibration error {100 * calibration_error(bins):.2f} %" if labelled else ""
    table = Table("confidence", "views", "", title=f"{name}: the first class's probability{error}")
    table.title_justify = "left"
    for column in ("labelled", "confidence %", "right %") if labelled else ():
        table.add_column(column)
    for i, count in _filled(counts):
        total, right, sure = bins[i].tolist()
        cells: tuple[str, ...] = (
            (f"{total:.0f}", _percent(sure / total), _percent(right / total)) if total else ("", "", "")
        )
        cells = cells if labelled else ()
        table.add_row(f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}", str(count), _bar(count, counts.max()), *cells)
    console.print(table)


def _print_entropy(console: Console, name: str, views: Sequence[dict[str, Any]]) -> None:
    counts = np.sum([v["entropy"] for v in views], axis=0)
    table = Table("entropy, nats", "views", "", title=f"{name}: entropy", title_justify="left")
    step = views[0]["entropy_limit"] / BINS
    for i, count in _filled(counts):
        table.add_row(f"{i * step:.2f} to {(i + 1) * step:.2f}", str(count), _bar(count, counts.max()))
    console.print(table)


def _class(found: dict[str, Any], number: int) -> str:
    """A class by number, and by name where that is known and is not the number itself."""
    names = found["classes"] or []
    named = 0 <= number < len(names) and names[number] != str(number)
    return f"{number} {names[number]}" if named else str(number)


def _print_rest(console: Console, rows: int) -> None:
    if rows > _ROWS:
        console.print(f"... and {rows - _ROWS} more: --json has all of them.")


def _filled(counts: np.ndarray) -> list[tuple[int, int]]:
    """Bins with their counts, without the empty ones at both ends."""
    there = np.flatnonzero(counts)
    return [(i, int(counts[i])) for i in range(there[0], there[-1] + 1)] if len(there) else []


def _bar(count: int, most: int) -> str:
    return "█" * math.ceil(_BAR * count / max(1, most))


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _console() -> Console:
    # In a log nothing is cut off for lack of columns. A key may look like markup.
    width = None if sys.stdout.isatty() else 200
    return Console(width=width, highlight=False, markup=False)
