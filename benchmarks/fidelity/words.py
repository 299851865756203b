"""A report's figures in words."""

from collections.abc import Iterable
from typing import Any

Report = dict[str, Any]


def error(report: Report, loss: str, way: str) -> float | None:
    """The median over batches; None where it wasn't measured."""
    figure = report["errors"].get(loss, {}).get(way)
    return None if figure is None else float(figure["student"]["median"])


def stored(report: Report, way: str) -> str:
    """Bytes of a view, in words."""
    return f"{report['bytes'][way]['stored']:,.0f} bytes"


def each_of(report: Report, names: Iterable[str], way: str) -> str:
    """A way's error for each of these losses that has one."""
    found = ((n, error(report, n, way)) for n in names)
    return ", ".join(f"{n} {e:.2g}" for n, e in found if e is not None)


def span(report: Report, names: Iterable[str], way: str) -> str:
    """The smallest and the largest of them; there is one."""
    found = [e for e in (error(report, n, way) for n in names) if e is not None]
    low, high = f"{min(found):.2g}", f"{max(found):.2g}"
    return low if low == high else f"{low} to {high}"


def classes(report: Report) -> str:
    """How many the teacher has."""
    return f"{report['teacher']['classes']:,} classes"
