"""docs/fidelity.md, drawn from the reports in the JSON beside it."""

from typing import Any

from benchmarks import book
from benchmarks.fidelity.advice import ENOUGH, TAILS, advice
from benchmarks.fidelity.words import Report, error
from benchmarks.page import circumstances, grid, wrapped

_INTRODUCTION = (
    "How far is a student's gradient off because its targets come from a cache and not from the teacher itself? An"
    " error here is ‖g − g_exact‖ / ‖g_exact‖ over all of the student's parameters, the median over batches: g from"
    " targets that were encoded and read back, g_exact from what the teacher says in float32, with the same student,"
    " views and adapters. g is the gradient of what is learned from the teacher alone, which labels' cross entropy"
    " would drown: kd and bucket-kd with alpha 1, nkd and scalekd without their ce, and of all others the loss minus"
    " its ce. Where a loss takes several kinds of targets, one is encoded and the others are exact.",
    "The figures are in [{record}]({record}), with minima and maxima, the errors of the adapters, and each loss's"
    " parity: don't edit them here. `python -m benchmarks fidelity --out docs/fidelity.md` measures on the numbers 000"
    " to 999, each three handwritten digits side by side, for which it trains a teacher first: real images, a thousand"
    " classes, real confusions. With `--index INDEX --weights FILE` it measures a teacher of yours, on your images.",
)
_PEER = (
    "What becomes of the classes beyond the top k, at temperature 1: spread evenly, as kdpipe has it; made one class"
    " more, which is bucket-kd's definition; or left out and the k made to sum to 1, which is what other formats do"
    " (the peer). Against KD, NKD and DKD with all logits."
)
_LOGITS = (
    "Logits. In brackets what kdpipe refuses. bucket-kd is measured against its own definition, which has the k;"
    " `+head` are pooled features, from which the teacher's classifier gives all logits."
)


def write(out: str, name: str, report: Report) -> None:
    """Keep a report under a name, and draw the document anew.

    Raises:
        ConfigError: it can't be read or written.
    """
    book.keep(out, {**book.read(out), name: report}, draw)


def draw(reports: dict[str, Report], record: str) -> str:
    """The document as Markdown, from the reports by name, which lie in the file `record` beside it."""
    reports = dict(sorted(reports.items(), key=lambda item: -item[1]["teacher"]["classes"]))
    parts = ["# Fidelity: what a cache loses, as a student feels it"]
    parts += [wrapped(text.format(record=record)) for text in _INTRODUCTION]
    found = advice(reports)
    if found:
        yardstick = ", ".join(f"{_typical(report):.2g} ({name})" for name, report in reports.items())
        parts += ["## What to keep", wrapped(_yardstick(yardstick))]
        parts.append("\n".join(_bullet(text) for text in found))
    for name, report in reports.items():
        parts += _section(name, report)
    return "\n\n".join(parts) + "\n"


def lines(report: Report) -> list[str]:
    """The report for a terminal: a line a loss and way."""
    found = []
    for loss, ways in report["errors"].items():
        for way, figure in ways.items():
            peer = f", renormalised {figure['peer']['median']:.2g}" if "peer" in figure else ""
            peer += f", {figure['ratio']:.1f} times ours" if figure.get("ratio") else ""
            refused = " (refused)" if figure.get("refused") else ""
            size = f"{report['bytes'][way]['stored']:,.0f} bytes"
            found.append(f"{loss:10} {way:22} {figure['student']['median']:<9.2g} {size}{peer}{refused}")
    return [*found, f"parity: {report['max_parity']:.2g} over {report['parity_steps']} steps"]


def _yardstick(text: str) -> str:
    return (
        f"We call an error of {ENOUGH:.0%} small. For comparison, the gradient of one batch is as far from the mean of"
        f" all measured batches as this, KD: {text}; but that averages out over the steps, and what an encoding does"
        " may not. Bytes are of a view, compressed as in the cache."
    )


def _section(name: str, report: Report) -> list[str]:
    teacher, student = report["teacher"], report["student"]
    shape = f", map {' x '.join(map(str, teacher['map']))}" if teacher["map"] else ""
    numbers = ", ".join(f"{key} {value}" for key, value in teacher["kwargs"].items())
    model = teacher["model"] + (f" ({numbers})" if numbers else "")
    text = (
        f"{model}, {teacher['classes']:,} classes at {teacher['size']} pixels, {student['teacher_top1']:.0%}"
        f" top-1 on these views; pooled {teacher['pooled']}{shape}. The student is a {student['model']} of"
        f" {student['kwargs']['channels']} channels after {report['steps']} steps of KD, {student['top1']:.0%} top-1,"
        f" of the teacher's opinion on {student['agreement']:.0%} of the views. {report['batches']} batches of"
        f" {report['rows']} views that it hasn't seen. Measured {circumstances(report)}; {report['seconds']} s."
    )
    mass = ", ".join(f"{value:.3f} in its top {k}" for k, value in teacher["retained"].items())
    parts = [f"## {name}", f"    {report['command']}", wrapped(text)]
    parts += [wrapped(f"The teacher's probability: {mass}. {_LOGITS}"), _table(report, _of_logits)]
    if any("peer" in figure for figure in report["errors"].get("kd", {}).values()):
        parts += [wrapped(_PEER), _tails(report)]
    for what, chosen in (("Pooled features.", _of_pooled), ("Final maps, and on bases of fewer channels.", _of_map)):
        if any(chosen(way) for ways in report["errors"].values() for way in ways):
            parts += [what, _table(report, chosen)]
    if report["absent"]:
        why = "; ".join(f"{n}: {text}" for n, text in report["absent"].items())
        parts.append(wrapped(f"Not measured, because this teacher hasn't got what they need: {why}."))
    return parts


def _of_logits(way: str) -> bool:
    # float32 log-probabilities differ from float16 in digits that aren't shown: the record has them.
    return (way.startswith(("top", "dense")) and not way.endswith("float32")) or way.endswith(("int8+head", "16+head"))


def _of_pooled(way: str) -> bool:
    return way.startswith("pooled") and not way.endswith(("head", "float32"))


def _of_map(way: str) -> bool:
    return way.startswith("map") and not way.endswith("float32")


def _table(report: Report, chosen: Any) -> str:
    errors: dict[str, Any] = report["errors"]
    names = [name for name, ways in errors.items() if any(chosen(way) for way in ways)]
    rows = list(dict.fromkeys(way for name in names for way in errors[name] if chosen(way)))
    found = [["", "bytes", *names]]
    for way in rows:
        cells = [_cell(errors[name].get(way)) for name in names]
        found.append([way, f"{report['bytes'][way]['stored']:,.0f}", *cells])
    return grid(found)


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    text = f"{figure['student']['median']:.2g}"
    return f"({text})" if figure.get("refused") else text


def _tails(report: Report) -> str:
    names = [name for name in TAILS if name in report["errors"]]
    heads = [f"{n}, {what}" for n in names for what in ("ours", "peer", "peer / ours")]
    found = [["k", *heads[:1], "kd, one class more", *heads[1:]]]
    for k in report["teacher"]["retained"]:
        way = f"top{k}-float16"
        cells = [str(k)]
        for name in names:
            figure = report["errors"][name][way]
            ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.1f}"
            bucket = [f"{report['bucket'][way]['median']:.2g}"] if name == "kd" else []
            cells += [f"{error(report, name, way):.2g}", *bucket, f"{figure['peer']['median']:.2g}", ratio]
        found.append(cells)
    return grid(found)


def _typical(report: Report) -> float:
    return float(report["noise"]["kd"]["median"])


def _bullet(text: str) -> str:
    first, *rest = wrapped(text).splitlines()
    return "\n".join([f"- {first}", *(f"  {line}" for line in rest)])
