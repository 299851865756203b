"""A document of figures, and NAME.json beside it, which keeps the last report of each kind: it is drawn from them."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.page import Reports, draw
from benchmarks.sections import SECTIONS
from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError


def record_path(out: str, option: str = "--out") -> Path:
    """Where the reports of a document lie.

    Raises:
        ConfigError: `out`, which `option` gave, is not the name of a document.
    """
    if Path(out).suffix != ".md":
        raise ConfigError("isn't the name of a document", where=option, found=out, allowed="NAME.md")
    return Path(out).with_suffix(".json")


def read(out: str, option: str = "--out") -> Reports:
    """The last reports, by section name; empty if there is none yet.

    Raises:
        ConfigError: the record can't be read.
    """
    path = record_path(out, option)
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
    """docs/benchmarks.md: the reports of its sections, and the document; see `keep`."""
    keep(out, {section.name: reports[section.name] for section in SECTIONS if section.name in reports}, draw)


def keep(out: str, reports: Reports, draw: Callable[[Reports, str], str], option: str = "--out") -> None:
    """The reports and the document drawn from them, each whole or not at all.

    Args:
        out: the document.
        reports: by section name.
        draw: makes the document of the reports and the name of the file that holds them.
        option: that gave `out`.

    Raises:
        ConfigError: they can't be written.
    """
    record = record_path(out, option)
    try:
        _replace(record, json.dumps(reports, indent=1) + "\n")
        _replace(Path(out), draw(reports, record.name))
    except OSError as e:
        do = f"Choose another {option}, or make room and permission"
        raise ConfigError(f"can't be written ({e.strerror or e})", where=out, do=do) from e


def _replace(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text)
