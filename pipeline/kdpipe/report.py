"""The report: teacher, students and baselines in one table, from the JSON that other commands wrote."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from kdpipe._util.files import read_bounded
from kdpipe._util.untrusted import load_json
from kdpipe.config import first_problem
from kdpipe.errors import ConfigError

# Names of a run's files, repeated here: a report imports nothing that trains, and DVC shouldn't repeat it for that.
_SUMMARY, _WEIGHTS = "summary.json", "best.safetensors"
_NO_TEACHER = "none"  # the loss of baselines
_BYTES = 2**24  # of a file, at most


class _Part(BaseModel):
    """What a report needs of a document, which holds more. Other commands wrote it, or an untrusted source."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Quality(_Part):
    teacher_top1: float | None
    encoding_loss: float


class _Record(_Part):
    teacher: str
    samples: int = Field(ge=1)
    views: list[int | str] = Field(min_length=1)
    bytes: int = Field(ge=0)
    quality: _Quality


class _Scores(_Part):
    top1: float | None
    nll: float | None
    agreement_top1: float | None = None
    kl: float | None = None


class _Loss(_Part):
    name: str


class _Config(_Part):
    student: dict[str, JsonValue]


class _Summary(_Part):
    student: str
    loss: _Loss
    steps: int
    config: _Config


_Document = TypeVar("_Document", bound=_Part)


def build(runs: Path, evaluations: Path, cache: str | None, teacher: str | None) -> dict[str, Any]:
    """Compare runs.

    Args:
        runs: folder of runs, RUNS/NAME.
        evaluations: folder of NAME.json, the output of `kdpipe evaluate --json` for the run of this name.
        cache: manifest of the cache from which the students were trained, or None.
        teacher: manifest of a cache of the evaluated views, or None.

    Returns:
        JSON-able: `students` by name, baselines included; `teacher` and `cache`, None where not given.

    Raises:
        ConfigError: a file is missing, or isn't what its command writes.
    """
    names = sorted(path.stem for path in evaluations.glob("*.json"))
    if not names:
        raise ConfigError("no evaluations there", where=evaluations, do="kdpipe evaluate --json > NAME.json makes one")
    students = {name: _row(runs / name, evaluations / f"{name}.json") for name in names}
    baselines = {row["model_digest"]: name for name, row in students.items() if row["loss"] == _NO_TEACHER}
    for row in students.values():
        baseline = baselines.get(row.pop("model_digest"))
        alone = None if baseline is None or row["loss"] == _NO_TEACHER else students[baseline]["top1"]
        row["baseline"] = baseline if alone is not None else None
        row["gain_points"] = None if alone is None or row["top1"] is None else 100 * (row["top1"] - alone)
    scored = _read(Path(teacher), _Record, _NO_RECORD) if teacher else None
    kept = _read(Path(cache), _Record, _NO_RECORD) if cache else None
    return {
        "teacher": scored and {"model": scored.teacher, "top1": scored.quality.teacher_top1},
        "students": students,
        "cache": kept and _cache(kept),
    }


def markdown(document: dict[str, Any]) -> str:
    """The report as a Markdown table and a line about the cache."""
    lines = [
        "| | model | loss | steps | top-1 % | agreement % | gain over baseline, points | weights, bytes |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    if document["teacher"]:
        teacher = document["teacher"]
        lines.append(f"| teacher | {_name(teacher['model'])} | | | {_percent(teacher['top1'])} | | | |")
    for name, row in document["students"].items():
        gain = "" if row["gain_points"] is None else f"{row['gain_points']:+.2f}"
        lines.append(
            f"| {_name(name)} | {_name(row['model'])} | {_name(row['loss'])} | {row['steps']} "
            f"| {_percent(row['top1'])} | {_percent(row['agreement_top1'])} | {gain} | {row['weights_bytes']} |"
        )
    cache = document["cache"]
    if cache:
        lines += [
            "",
            f"Cache: {cache['samples']} samples x {cache['views']} views, {cache['bytes']} bytes, "
            f"{cache['bytes_per_view']:.1f} a view, encoding loss {cache['encoding_loss']:.3g} nats.",
        ]
    return "\n".join(lines) + "\n"


def _cache(record: _Record) -> dict[str, Any]:
    views = record.samples * len(record.views)
    return {
        "samples": record.samples,
        "views": len(record.views),
        "bytes": record.bytes,
        "bytes_per_view": record.bytes / views,
        "encoding_loss": record.quality.encoding_loss,
    }


def _row(run: Path, evaluation: Path) -> dict[str, Any]:
    summary = _read(run / _SUMMARY, _Summary, "not a finished run")
    scores = _read(evaluation, _Scores, "not an evaluation")
    try:
        size = (run / _WEIGHTS).stat().st_size
    except OSError as e:
        raise ConfigError(f"not a finished run: {e.strerror}", where=run / _WEIGHTS) from e
    return {
        "model": summary.student,
        # Baselines have the same arguments and classes too, not the name alone.
        "model_digest": json.dumps(summary.config.student, sort_keys=True),
        "loss": summary.loss.name,
        "steps": summary.steps,
        "top1": scores.top1,
        "nll": scores.nll,
        "agreement_top1": scores.agreement_top1,
        "kl": scores.kl,
        "weights_bytes": size,
    }


_NO_RECORD = "no record of a cache"


def _read(path: Path, kind: type[_Document], otherwise: str) -> _Document:
    """A JSON file, of which only what is needed is kept; `otherwise` is what it is if that isn't there."""
    do = "Name a --manifest of cache-teacher, runs as RUNS/NAME and their evaluations as EVALUATIONS/NAME.json"
    try:
        found = load_json(read_bounded(path, _BYTES))
    except (OSError, ValueError) as e:
        raise ConfigError("can't be read as JSON", where=path, do=do) from e
    try:
        return kind.model_validate(found)
    except ValidationError as e:
        key, why, _ = first_problem(e)
        raise ConfigError(f"{otherwise}: {key or 'the document'}: {why.lower()}", where=path, do=do) from e


def _name(text: str) -> str:
    """A name in a table: it ends neither its cell nor its line, and a terminal shows all of it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace("|", "\\|")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
