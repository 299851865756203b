"""docs/benchmarks.md, and NAME.json beside it, which keeps the last report of every bench: it is drawn from them."""

import json
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import whole
from stages.bench.page import Reports, draw
from stages.bench.sections import SECTIONS


def record_path(out: str) -> Path:
    """Where the reports of a document lie.

    Raises:
        ConfigError: `out` is not the name of a document.
    """
    if Path(out).suffix != ".md":
        raise ConfigError("isn't the name of a document", where="--out", found=out, allowed="NAME.md")
    return Path(out).with_suffix(".json")


def read(out: str) -> Reports:
    """The last report of every bench, by section name; empty if there is none yet.

    Raises:
        ConfigError: the record can't be read.
    """
    path = record_path(out)
    try:
        reports = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"can't be read ({e})", where=path, do="Restore it, or delete it to start anew") from e
    if not isinstance(reports, dict) or not all(isinstance(report, dict) for report in reports.values()):
        raise ConfigError("holds no reports", where=path, do="Restore it, or delete it to start anew")
    return reports


def write(out: str, reports: Reports) -> None:
    """The reports and the document drawn from them, each whole or not at all.

    Raises:
        ConfigError: they can't be written.
    """
    known = {section.name: reports[section.name] for section in SECTIONS if section.name in reports}
    try:
        replace_text(record_path(out), json.dumps(known, indent=1) + "\n")
        replace_text(Path(out), draw(known, record_path(out).name))
    except OSError as e:
        do = "Choose another --out, or make room and permission"
        raise ConfigError(f"can't be written ({e.strerror or e})", where=out, do=do) from e


def replace_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text)
