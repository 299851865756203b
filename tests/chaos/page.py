"""The chaos part of docs/reliability.md, drawn from what a run found."""

import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- chaos: drawn by make chaos -->", "<!-- chaos: end -->"
_TITLE = "# Reliability\n\nEach part is drawn by the command that it names.\n\n"


def document(rows: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The runs with what one needs to know of them."""
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "commit": _commit(),
        "runs": rows,
    }


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def markdown(found: dict[str, Any]) -> str:
    """The part between its two marks."""
    rows = found["runs"]
    count = Counter(row["outcome"] for row in rows)
    lines = [
        BEGIN,
        "## Seeded faults",
        "",
        "A run draws a command that writes and a moment of it from its seed, has a fault happen then, repeats the",
        "command undisturbed, and compares every byte that is left with what the command leaves that nothing has",
        "disturbed: all files of a cache, an index, shards, pictures; of training the weights and the metrics without",
        "times. A disk that fails must end the command with one line, exit code 2 and nothing half-written; so must a",
        "standard output that goes to a full disk.",
        "",
        f"{len(rows)} runs: {count['same bytes']} ended with the undisturbed bytes, {count['finding']} did not, "
        f"{count['not available']} faults are not to be had on this system.",
        "",
        "| fault | runs | same bytes | ended by itself | refused or killed | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = [row for row in rows if row["kind"] == kind]
        same = [row for row in of if row["outcome"] == "same bytes"]
        whole = sum(row["ended"] in ("exit code 0", "not reached") for row in same)
        seeds = ", ".join(str(row["seed"]) for row in of)
        lines.append(f"| {kind} | {len(of)} | {len(same)} | {whole} | {len(same) - whole} | {seeds} |")
    findings = [row for row in rows if row["outcome"] == "finding"]
    lines += ["", "Findings: " + ("none." if not findings else ""), ""]
    lines += [f"- seed {row['seed']}, {row['kind']}: {' '.join(row['what'].split())[:300]}" for row in findings]
    lines += [""] if findings else []
    lines += [
        f"`{found['command']}`, {found['date']}, commit {found['commit']}, {found['machine']}. Each run with its",
        "command and moment: [reliability-chaos.json](reliability-chaos.json).",
        "One of them again: `make chaos ONLY='KIND' FIRST=SEED SEEDS=1`.",
        END,
    ]
    return "\n".join(lines)


def write(path: Path, found: dict[str, Any]) -> None:
    """Put the part into the page, in place of the last one; the rest of it stays."""
    text = path.read_text() if path.is_file() else _TITLE
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < 0:
        text = text.rstrip() + "\n\n" + markdown(found) + "\n"
    else:
        text = text[:start] + markdown(found) + text[end + len(END) :]
    path.write_text(text)
