"""The Markdown of docs/benchmarks.md, from reports."""

import re
import shlex
import textwrap
from typing import Any

from benchmarks.section import Row, Section
from benchmarks.sections import SECTIONS

MISSING = "–"
_WIDTH = 118

_INTRODUCTION = (
    "Each figure comes from the command above it, which prints our figure and a peer's from one run, in turn. Figures"
    " are medians of the repeats, with minimum and maximum in brackets. Core time is the processor's clock over all"
    " threads. Trust ratios more than times: other work on a machine slows both. A bound is what we promise, and says"
    " of which figure; the last column says whether it is met. Nothing here was measured on a GPU.",
    "`make bench PHOTOS=INDEX`, which is `python -m benchmarks all --index INDEX --out docs/benchmarks.md`, measures"
    " everything again and draws this document; with `--only NAME` one section. The figures are in"
    " [{record}]({record}), which holds the last report of every bench: don't edit them here. `PHOTOS` in"
    " a command is an index of photographs, made by `kdpipe index`.",
)
_DIGITS = (
    "Measured on scikit-learn's digits for want of photographs (`--index`): those decode in no time, so this says"
    " little about photographs."
)

Reports = dict[str, dict[str, Any]]


def draw(reports: Reports, record: str) -> str:
    """The document as Markdown.

    Args:
        reports: by section name.
        record: name of the file beside it that holds them.
    """
    newest = max((reports[s.name] for s in SECTIONS if s.name in reports), key=_date, default={})
    parts = ["# Benchmarks", *(wrapped(text.format(record=record)) for text in _INTRODUCTION)]
    if newest:
        parts.append(wrapped(f"Measured {circumstances(newest)}, unless a section says otherwise."))
    for section in SECTIONS:
        parts += _section(section, reports.get(section.name), newest)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, report: dict[str, Any] | None, newest: dict[str, Any]) -> list[str]:
    parts = [f"## {section.title}"]
    if report is None:
        return [*parts, f"    {shlex.join(['kdpipe', 'bench', *section.words])}", "Not measured yet."]
    command = report.get("command", MISSING)
    parts.append(wrapped(section.text.format_map(_Figures(report))))
    if section.photographs and "--index" not in command.split():
        parts.append(wrapped(_DIGITS))
    if changed := _otherwise(report, newest):
        parts.append(wrapped(f"Measured {changed}."))
    parts += [f"    {command}", _table(section, report)]
    if section.note:
        parts.append(wrapped(section.note.format_map(_Figures(report))))
    if section.operations:
        parts.append(_operations(report))
    return parts


def _table(section: Section, report: dict[str, Any]) -> str:
    """Columns that no row uses are left out."""
    rows = [_cells(row, report) for row in section.rows]
    heads = ["", "ours", "peer", section.ratio, "bound", ""]
    used = [i for i in range(len(heads)) if i == 0 or any(row[i] for row in rows)]
    return grid([[line[i] for i in used] for line in (heads, *rows)])


def _cells(row: Row, report: dict[str, Any]) -> list[str]:
    ours, peer, ratio = (_find(report, path) for path in (row.ours, row.peer, row.ratio))
    cells = [
        row.label,
        _figure(ours, row.form) if row.ours else "",
        _figure(peer, row.form) if row.peer else "",
        _figure(ratio, ".2f") if row.ratio else "",
    ]
    if row.bound is None:
        return [*cells, "", ""]
    judged = _median(ours if row.bound.of == "ours" else ratio)
    verdict = MISSING if judged is None else "met" if row.bound.holds(judged) else "**not met**"
    return [*cells, str(row.bound), verdict]


def _operations(report: dict[str, Any]) -> str:
    lines = [["operation", "ours, ms", "PIL, ms", "PIL / ours"]]
    for name, op in report.get("operations", {}).items():
        ours, peer = _median(op.get("ms")), _median(op.get("pil_ms"))
        ratio = peer / ours if ours and peer is not None else None
        lines.append([name, *(_figure(value, form) for value, form in ((ours, ".3f"), (peer, ".3f"), (ratio, ".1f")))])
    return grid(lines)


def grid(lines: list[list[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    head, *rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


def _find(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _median(value: Any) -> float | None:
    """Of a figure or a spread; None if it is neither."""
    if isinstance(value, dict):
        value = value.get("median")
    return value if isinstance(value, int | float) else None


def _figure(value: Any, form: str) -> str:
    median = _median(value)
    if median is None:
        return MISSING
    text = format(median, form)
    if isinstance(value, dict) and {"min", "max"} <= value.keys():
        text += f" ({value['min']:{form}}–{value['max']:{form}})"
    return text


def _date(report: dict[str, Any]) -> str:
    return str(report.get("date", ""))


def circumstances(report: dict[str, Any]) -> str:
    """When, where and with what a report was made."""
    versions = ", ".join(f"{name} {number}" for name, number in report.get("versions", {}).items())
    return f"on {_date(report) or MISSING}, {report.get('machine', MISSING)}; {versions or MISSING}"


def _otherwise(report: dict[str, Any], newest: dict[str, Any]) -> str:
    """Under which circumstances other than the newest report's; what one of them doesn't say is no difference."""
    parts = [f"on {_date(report) or MISSING}"] if _date(report) != _date(newest) else []
    if report.get("machine") != newest.get("machine"):
        parts.append(str(report.get("machine", MISSING)))
    now = newest.get("versions", {})
    parts += [f"with {n} {v}" for n, v in report.get("versions", {}).items() if now.get(n, v) != v]
    return ", ".join(parts)


class _Missing:
    def __format__(self, form: str) -> str:
        return MISSING


class _Figures(dict[str, Any]):
    """A report to fill a text with; what it lacks is shown as missing, whatever its format."""

    def __missing__(self, key: str) -> _Missing:
        return _Missing()


def wrapped(text: str) -> str:
    """A paragraph in lines."""
    # No line may end inside a code span: readers of the document take spans line by line.
    whole = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.wrap(whole, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
