"""The tables of docs/fidelity.md."""

from collections.abc import Callable
from typing import Any

from benchmarks.fidelity.run import TAILS
from benchmarks.report import Report, details, grid


def draw(_: str, report: Report) -> list[str]:
    """A report's tables: what was measured, errors by encoding and loss, and those of other formats."""
    parts = [details(_about(report)), _table(report, _of_logits)]
    if any("reference" in figure for figure in report["errors"].get("kd", {}).values()):
        parts.append(_tails(report))
    parts += [_table(report, chosen) for chosen in (_of_pooled, _of_map) if _names(report, chosen)]
    return parts


def _about(report: Report) -> dict[str, Any]:
    teacher, student = report["teacher"], report["student"]
    arguments = ", ".join(f"{key}={value}" for key, value in teacher["kwargs"].items())
    return {
        "teacher": f"{teacher['model']}({arguments})",
        "classes": teacher["classes"],
        "pixels": teacher["size"],
        "pooled features, map": f"{teacher['pooled']}, {' x '.join(map(str, teacher['map'] or ())) or 'none'}",
        "teacher's top-1 on these views": f"{student['teacher_top1']:.1%}",
        "teacher's probability in its top k": {f"k {k}": f"{mass:.3f}" for k, mass in teacher["retained"].items()},
        "map's variance by rank": {f"r{rank}": f"{share:.1%}" for rank, share in teacher["explained"].items()},
        "student": f"{student['model']}, channels {student['kwargs']['channels']}, {report['steps']} steps of KD",
        "student's top-1": f"{student['top1']:.1%}",
        "student's agreement with the teacher": f"{student['agreement']:.1%}",
        "batches x views": f"{report['batches']} x {report['rows']}",
        "distance of a batch's gradient from the mean, KD": report["noise"].get("kd", {}).get("median", "none"),
        f"KD's error of top 16 after {report['early'].get('steps', 0)} steps": _early(report),
        f"largest difference to online over {report['parity_steps']} steps": report["max_parity"],
        "not measured": "; ".join(f"{name}: {why}" for name, why in report["absent"].items()) or "none",
        "seconds": report["seconds"],
    }


def _early(report: Report) -> Any:
    return report["early"].get("kd", {}).get("top16-float16", {}).get("median", "none")


def _of_logits(name: str) -> bool:
    # float32 log-probabilities differ from float16 in digits that aren't shown; the JSON has them.
    return (name.startswith(("top", "dense")) and not name.endswith("float32")) or name.endswith(
        ("int8+head", "16+head")
    )


def _of_pooled(name: str) -> bool:
    return name.startswith("pooled") and not name.endswith(("head", "float32"))


def _of_map(name: str) -> bool:
    return name.startswith("map") and not name.endswith("float32")


def _names(report: Report, chosen: Callable[[str], bool]) -> list[str]:
    return [loss for loss, encodings in report["errors"].items() if any(map(chosen, encodings))]


def _table(report: Report, chosen: Callable[[str], bool]) -> str:
    errors, names = report["errors"], _names(report, chosen)
    rows = list(dict.fromkeys(name for loss in names for name in errors[loss] if chosen(name)))
    lines = [["", "bytes", *names]]
    for name in rows:
        size = f"{report['bytes'][name]['stored']:,.0f}"
        lines.append([name, size, *(_cell(errors[loss].get(name)) for loss in names)])
    return grid(lines)


def _cell(figure: dict[str, Any] | None) -> str:
    """The median; in brackets what kdpipe refuses."""
    if figure is None:
        return ""
    text = f"{figure['student']['median']:.2g}"
    return f"({text})" if figure.get("refused") else text


def _tails(report: Report) -> str:
    names = [name for name in TAILS if name in report["errors"]]
    heads = [f"{n}, {what}" for n in names for what in ("ours", "reference", "reference / ours")]
    lines = [["k", *heads[:1], "kd, one class more", *heads[1:]]]
    for k in report["teacher"]["retained"]:
        cells = [str(k)]
        for name in names:
            figure = report["errors"][name][f"top{k}-float16"]
            bucket = [f"{report['bucket'][f'top{k}-float16']['median']:.2g}"] if name == "kd" else []
            ratio = "" if figure["ratio"] is None else f"{figure['ratio']:.1f}"
            cells += [f"{figure['student']['median']:.2g}", *bucket, f"{figure['reference']['median']:.2g}", ratio]
        lines.append(cells)
    return grid(lines)
