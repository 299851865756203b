"""docs/reliability.md, drawn from docs/reliability.json, which holds the last report of the fuzz and the fault runs.

A report is a JSON object:

    date, command, machine     when, how, and where it was made: text
    text                       list of paragraphs on what was done
    columns, rows              a table: list of text, list of lists of text and numbers
    findings                   list of text, one for each failure; empty where there was none

`python -m tests.reliability` draws the document anew.
"""

import json
import re
import subprocess
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import grid
from benchmarks.reporting import processor
from kdpipe._util.files import atomic_write
from kdpipe._util.machine import cores

DOCUMENT = Path(__file__).parent.parent / "docs" / "reliability.md"
# By name in the JSON: the section's title, and how to make it.
SECTIONS = {"fuzz": ("Damaged and hostile input", "make fuzz"), "chaos": ("Faults while running", "make chaos")}
_INTRODUCTION = (
    "What was done to break kdpipe, and what came of it. `make fuzz` and `make chaos` write the reports and draw this"
    " document from them; they lie in [{record}]({record}): don't edit them here."
)


def circumstances(command: str) -> dict[str, str]:
    """Date (UTC), command and machine of a report."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": f"{processor()}, {cores()} cores",
    }


def revision() -> str:
    """The commit that is checked out, in short; `unknown` outside of a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def kept(name: str, document: Path = DOCUMENT) -> dict[str, Any] | None:
    """One section's last report."""
    record = document.with_suffix(".json")
    report: dict[str, Any] | None = json.loads(record.read_text()).get(name) if record.exists() else None
    return report


def keep(name: str, report: dict[str, Any], document: Path = DOCUMENT) -> None:
    """Replace one section's report, and draw the document."""
    record = document.with_suffix(".json")
    reports = json.loads(record.read_text()) if record.exists() else {}
    reports[name] = report
    _replace(record, json.dumps(reports, indent=1, sort_keys=True) + "\n")
    _replace(document, draw(reports, record.name))


def draw(reports: dict[str, Any], record: str) -> str:
    """The document as Markdown; a section without a report names the command that makes one."""
    parts = ["# Reliability", wrapped(_INTRODUCTION.format(record=record))]
    for name, (title, command) in SECTIONS.items():
        parts.append(f"## {title}")
        report = reports.get(name)
        if report is None:
            parts.append(f"Not run yet: `{command}`.")
            continue
        parts.append(wrapped(f"Made on {report['date']} by `{report['command']}`, {report['machine']}."))
        parts += [wrapped(text) for text in report.get("text", [])]
        parts.append(grid([[_cell(value) for value in row] for row in (report["columns"], *report["rows"])]))
        findings = report.get("findings", [])
        parts.append("Findings:" if findings else "Findings: none.")
        if findings:
            parts.append("\n".join(f"- {' '.join(str(finding).split())}" for finding in findings))
    return "\n\n".join(parts) + "\n"


def wrapped(text: str) -> str:
    """A paragraph in lines; none ends inside a code span, because readers of documents take spans line by line."""
    whole = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.wrap(whole, 118, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _replace(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text)


if __name__ == "__main__":
    reports = json.loads(DOCUMENT.with_suffix(".json").read_text())
    _replace(DOCUMENT, draw(reports, DOCUMENT.with_suffix(".json").name))
