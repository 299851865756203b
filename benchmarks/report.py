"""Documents of figures: NAME.json has the last report of each section, NAME.md their tables between markers.

The text around the markers is written by hand. A section's marker is `<!-- figures: SECTION -->`; what stands from
there to `<!-- end -->` is replaced.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError

MISSING = "–"
_END = "<!-- end -->"

Report = dict[str, Any]


def read(out: str, option: str = "--out") -> dict[str, Report]:
    """The last reports, by section; empty if there is none yet.

    Args:
        out: the document.
        option: that named it.

    Raises:
        ConfigError: `out` isn't the name of a document, or the reports can't be read.
    """
    path = _json(out, option)
    try:
        reports = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"can't be read ({e})", where=path, do="Restore or delete it") from e
    if not isinstance(reports, dict) or not all(isinstance(report, dict) for report in reports.values()):
        raise ConfigError("holds no reports", where=path, do="Restore or delete it")
    return reports


def write(
    out: str, reports: dict[str, Report], draw: Callable[[str, Report], list[str]], option: str = "--out"
) -> None:
    """The reports and the document with their tables, each file whole or unchanged.

    Args:
        out: the document; a section that it has no marker of is added at its end.
        reports: by section.
        draw: makes a section's paragraphs and tables; its command, date and machine stand before them.
        option: that named the document.

    Raises:
        ConfigError: they can't be written.
    """
    path, document = _json(out, option), Path(out)
    try:
        text = document.read_text() if document.exists() else f"# {document.stem.capitalize()}\n"
        for section, report in reports.items():
            text = _insert(text, section, [*_circumstances(report), *draw(section, report)])
        for file, content in ((path, json.dumps(reports, indent=1) + "\n"), (document, text)):
            with atomic_write(file) as partial:
                partial.write_text(content)
    except (OSError, UnicodeDecodeError) as e:
        do = f"Choose another {option}, or make room and permission"
        raise ConfigError(f"can't be written ({getattr(e, 'strerror', None) or e})", where=out, do=do) from e


def grid(lines: list[list[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    head, *rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


def details(values: dict[str, Any]) -> str:
    """Properties of a run as a table of two columns."""
    return grid([["", ""], *([name, _shown(value)] for name, value in values.items())])


def median(value: Any) -> float | None:
    """Of a figure or a spread; None if it is neither."""
    if isinstance(value, dict):
        value = value.get("median")
    return value if isinstance(value, int | float) else None


def figure(value: Any, form: str) -> str:
    """A figure, or a spread as median (min–max)."""
    middle = median(value)
    if middle is None:
        return MISSING
    text = format(middle, form)
    if isinstance(value, dict) and {"min", "max"} <= value.keys():
        text += f" ({value['min']:{form}}–{value['max']:{form}})"
    return text


def _json(out: str, option: str) -> Path:
    if Path(out).suffix != ".md":
        raise ConfigError("isn't the name of a document", where=option, found=out, allowed="NAME.md")
    return Path(out).with_suffix(".json")


def _insert(text: str, section: str, parts: list[str]) -> str:
    begin = f"<!-- figures: {section} -->"
    if begin not in text:
        text = f"{text.rstrip()}\n\n## {section}\n\n{begin}\n{_END}\n"
    before, _, rest = text.partition(begin)
    return "\n\n".join([before + begin, *parts, _END]) + rest.partition(_END)[2]


def _circumstances(report: Report) -> list[str]:
    """Command, date, machine and versions."""
    versions = ", ".join(f"{name} {number}" for name, number in report.get("versions", {}).items())
    first = f"Measured on {report.get('date', MISSING)}, {report.get('machine', MISSING)}."
    return [f"    {report.get('command', MISSING)}", "\n".join([first, f"Versions: {versions or MISSING}."])]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " x ".join(map(_shown, value))
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
