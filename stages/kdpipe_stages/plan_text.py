"""A forecast as tables, with ranges in readable units."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

Range = dict[str, Any]
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
_SECONDS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def show(report: dict[str, Any]) -> None:
    """Print a forecast."""
    # In a log nothing is cut off for lack of columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    machines = Table("machines like this", "wall time")
    for m in report["machines"]:
        machines.add_row(str(m["machines"]), duration(m["seconds"]))
    student = [_student(report["student"])] if report["student"] else []
    for table in (_facts(report), _encodings(report), machines, *student):
        console.print(table)
    for remark in report["remarks"]:
        console.print(f"- {remark}", markup=False, highlight=False)


def size(value: Range) -> str:
    """Bytes: 12.3 to 14.1 GB."""
    return _span(value, _BYTES)


def duration(value: Range) -> str:
    """Seconds: 1.2 to 1.4 h."""
    return _span(value, _SECONDS)


def _span(value: Range | float, units: tuple[tuple[float, str], ...]) -> str:
    """A range in the unit of its middle, or a number."""
    whole = value if isinstance(value, dict) else dict.fromkeys(("low", "mid", "high"), value)
    per, unit = next((u for u in units if whole["mid"] >= u[0]), units[-1])
    low, high = (_number(whole[name] / per) for name in ("low", "high"))
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


def _facts(report: dict[str, Any]) -> Table:
    t, s, alone, rates = (report[name] for name in ("teacher", "sampled", "seconds_alone", "views_per_second"))
    accuracy = f", top-1 {100 * s['teacher_top1']:.1f} % on the sample" if s["teacher_top1"] is not None else ""
    total = sum(alone.values()) or 1
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in alone.items())
    views = report["views"] // report["samples"]
    table = Table(show_header=False, box=None)
    table.add_row(
        "caching", f"{report['samples']} samples x {views} views ({report['view_spec']}) in {report['tasks']} tasks"
    )
    table.add_row(
        "teacher", f"{t['model']} at {t['input_size']} px on {t['device']}, {t['num_classes']} classes{accuracy}"
    )
    table.add_row(
        "sample", f"{s['samples']} samples ({100 * s['share']:.1f} %), {s['views']} views each, {s['seconds']:.0f} s"
    )
    table.add_row("work", f"{shares}; the longest is {report['binds']}")
    table.add_row(
        "speed",
        f"{_number(rates['low'])} to {_number(rates['high'])} views/s, {t['render_threads']} render threads; "
        f"{_number(report['startup_seconds'])} s to start",
    )
    table.add_row("device time", f"{duration(report['device_seconds'])} of the teacher's forward")
    if report["part_bytes"]:
        table.add_row("stored once", f"{_span(report['part_bytes'], _BYTES)} beside the arrays")
    return table


def _encodings(report: dict[str, Any]) -> Table:
    features = [n for n in ("pooled", "map") if any(n in e for e in report["encodings"])]
    heads = ("encoding", "bytes", "bytes a view", "files", "retained", "loss, nats")
    table = Table(*heads, *(f"error, {name}" for name in features))
    for e in report["encodings"]:
        table.add_row(
            e["name"] + (" *" if e["chosen"] else ""),
            size(e["bytes"]),
            f"{e['bytes_per_view']['mid']:.1f}",
            str(e["files"]),
            "" if e["retained_mass"] is None else f"{e['retained_mass']:.5f}",
            "" if e["kind"] == "none" else _lost(e["encoding_loss"]),
            *(_lost(e[f"{name}_error"]) if name in e else "" for name in features),
            style="bold" if e["chosen"] else None,
        )
    return table


def _lost(value: float | None) -> str:
    return "too large for it" if value is None else f"{max(0.0, value):.2g}"


def _student(s: dict[str, Any]) -> Table:
    table = Table("student", "from the cache", "teacher online", "the cache pays from")
    least, most = (s["break_even_students"][name] for name in ("low", "high"))
    pays = "never" if least is None else f"{_number(least)} to {'any' if most is None else _number(most)} students"
    name = f"{s['model']} at {s['input_size']} px, {s['epochs']} epochs, batch {s['batch_size']}"
    table.add_row(name, duration(s["seconds_cached"]), duration(s["seconds_online"]), pays)
    table.caption = f"storage must deliver {_span(s['read_bytes_per_second'], _BYTES)} a second"
    return table
