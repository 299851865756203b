"""docs/losses.md, and NAME.json beside it, which keeps the last report of every data set: it is drawn from them."""

from typing import Any

from benchmarks import book
from benchmarks.contest.table import HEADS, cells, reading
from benchmarks.page import Reports, circumstances, grid, wrapped

# Of the command, which names the document.
OPTION = "--page"
_INTRODUCTION = (
    "The same student with every loss of `kdpipe losses`, from one cache, with the same steps, views, order,"
    " optimizer and learning rate, and the same first weights for a seed; nothing is tuned for any of them. Numbers are"
    " the defaults; rows named CIFAR have those that papers use there. Figures are means over the seeds, with the"
    " smallest and the largest in brackets; a gain is that over labels alone with the same seed. Seconds are those of"
    " the quickest of a row's runs, evaluation included, with another beside it. Bytes are those that a run reads of a"
    " view, uncompressed, features as float16: int8 halves them, and `kdpipe losses` tells the smallest cache for"
    " each.",
    "These are small runs of a small student, which say how losses behave out of the box, not which is best: papers"
    " train for hundreds of epochs with weights chosen for their teachers and students. The commands draw this document"
    " from [{record}]({record}), which holds the figures: don't edit them here. The teacher of CIFAR-10 is the small"
    " SLaK of [results.md](results.md).",
)


def add(out: str, title: str, report: dict[str, Any]) -> None:
    """Put a report into the document, in the place of its former one.

    Raises:
        ConfigError: the document or its record can't be read or written.
    """
    book.keep(out, {**book.read(out, OPTION), title: report}, draw, OPTION)


def draw(reports: Reports, record: str) -> str:
    """The document as Markdown, a section a report."""
    parts = ["# Losses side by side", *(wrapped(text.format(record=record)) for text in _INTRODUCTION)]
    for title, report in reports.items():
        parts += [
            f"## {title}",
            wrapped(f"Measured {circumstances(report)}."),
            f"    {report['command']}",
            wrapped(" ".join(about(report))),
            grid([list(HEADS), *(cells(row) for row in report["rows"])]),
            wrapped(" ".join(reading(report["rows"]))),
        ]
    return "\n\n".join(parts) + "\n"


def about(report: dict[str, Any]) -> list[str]:
    """Sentences that say what was trained, on what, and for how long."""
    data, teacher, student, budget = (report[name] for name in ("data", "teacher", "student", "budget"))
    *grid_, width = teacher["map"]
    score = "" if teacher["top1"] is None else f", {100 * teacher['top1']:.2f} % top-1 on the validation samples"
    said = [
        f"{data['samples']:,} samples, {data['labelled']:,} with a label; top-1 is that on"
        f" {data['validation']:,} others after the last step.",
        f"The teacher is {_named(teacher)}{score}, with a final map of {' x '.join(map(str, grid_))} x {width}.",
        f"The student is {_named(student)}, {student['parameters']:,} parameters, at {student['input_size']} pixels.",
        f"{budget['steps']:,} steps of {budget['batch_size']}, an epoch for each of {budget['epochs']} views; AdamW,"
        f" learning rate {budget['lr']:g} after a tenth of warm-up, then cosine; {budget['seeds']} seeds;"
        f" {budget['jobs']} processes of one thread side by side.",
    ]
    if data["labelled"] < data["samples"]:
        said.append(
            "Labels alone takes as many steps, within an epoch, on the labelled samples, whose views don't repeat; the"
            " others meet a label only as often as it is among the samples. nkd and dkd compare labelled ones alone."
        )
    if grid_ == [1, 1]:
        said.append(
            "A map of one position has nothing that varies over positions: of cap-dfm and scalekd L_freq is idle here."
        )
    return said


def _named(model: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in model["model_kwargs"].items())
    return f"`{model['model']}({arguments})`" if arguments else f"`{model['model']}`"
