"""The figures of a comparison as tables."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.report import Report, details, grid

HEADS = ("loss", "hyperparameters", "top-1, %", "gain, points", "gains", "term / loss", "seconds", "bytes a view")


def draw(_: str, report: Report) -> list[str]:
    """What was trained, and a line a loss."""
    data, teacher, student, budget = (report[name] for name in ("data", "teacher", "student", "budget"))
    about = {
        "samples, of which labelled": f"{data['samples']:,}, {data['labelled']:,}",
        "validation samples": data["validation"],
        "teacher": _named(teacher),
        "teacher's top-1": "none" if teacher["top1"] is None else f"{teacher['top1']:.2%}",
        "teacher's map": teacher["map"],
        "student": f"{_named(student)}, {student['parameters']:,} parameters, {student['input_size']} pixels",
        "steps x batch": f"{budget['steps']:,} x {budget['batch_size']}",
        "epochs and views, seeds": f"{budget['epochs']}, {budget['seeds']}",
        "learning rate": budget["lr"],
        "processes side by side": budget["jobs"],
    }
    return [details(about), grid([list(HEADS), *(cells(row) for row in report["rows"])])]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, as HEADS; of a refused loss the reason stands for its figures.

    `gains`: seeds with which it is better than labels alone; `term / loss`: of a loss added to cross entropy, its
    share of the last epoch's loss.
    """
    first, size = [row["label"], row["hyperparameters"]], f"{row['bytes_per_view']:,}"
    if row["refused"]:
        return [*first, f"refused: {row['refused']}", "", "", "", "", size]
    baseline = row["loss"]["name"] == "none"
    gain = "" if baseline else _spread(row["gain"], "+.2f")
    gains = "" if baseline else f"{sum(value > 0 for value in row['gain'])} of {len(row['gain'])}"
    parts = row["parts"]
    term = f"{1 - parts['ce'] / parts['loss']:.0%}" if row["label"].startswith("ce+") else ""
    return [*first, _spread(row["top1"], ".2f"), gain, gains, term, f"{min(row['seconds']):.0f}", size]


def _named(model: dict[str, Any]) -> str:
    return f"{model['model']}({', '.join(f'{name}={value}' for name, value in model['model_kwargs'].items())})"


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) < 2:
        return format(values[0], form)
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
