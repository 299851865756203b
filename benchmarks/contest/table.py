"""A contest's figures as a table, and what can be read from it without more seeds."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

# How labels of terms begin; and a share of the loss that moves nothing.
_TERM, _NOTHING = "ce+", 1e-3
HEADS = ("loss", "numbers", "top-1, %", "gain, points", "seconds", "bytes a view")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, as HEADS says; of a refused loss the reason stands for its figures."""
    size = f"{row['bytes_per_view']:,}"
    if row["refused"]:
        return [row["label"], row["numbers"], f"refused: {row['refused']}", "", "", size]
    gain = "" if _is_baseline(row) else _spread(row["gain"], "+.2f")
    return [row["label"], row["numbers"], _spread(row["top1"], ".2f"), gain, f"{min(row['seconds']):.0f}", size]


def reading(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences: who gains with every seed, who loses with every seed, who does neither, who is near the best."""
    ran = [row for row in rows if not row["refused"] and not _is_baseline(row)]
    if not ran:
        return []
    better = [row for row in ran if min(row["gain"]) > 0]
    worse = [row for row in ran if max(row["gain"]) < 0]
    neither = [row for row in ran if row not in better and row not in worse]
    said = [
        _sentence("Better than labels alone with every seed", better),
        _sentence("Worse with every seed", worse),
        _sentence("Neither, so within the spread of the seeds", neither),
    ]
    if better:
        best = max(better, key=lambda row: mean(row["gain"]))
        # Of the same seed both students began with the same weights and saw the same batches.
        near = [row for row in ran if row is not best and _reaches(row, best)]
        said.append(f"The highest mean is that of {best['label']}.")
        said.append(_sentence("Not behind it with every seed, and so not told apart from it", near))
    if _same(ran, "kd", "bucket-kd"):
        said.append("bucket-kd is kd here: all classes are kept.")
    terms = [row for row in ran if row["label"].startswith(_TERM)]
    if terms:
        shares = ", ".join(f"{row['label']} {_share(row):.0%}" for row in terms)
        said.append(f"What a term beside CE makes of the last epoch's loss: {shares}.")
    said += [
        f"So {row['label']} is in effect CE on the batches that the others see: {mean(row['top1']):.2f} %."
        for row in terms
        if abs(_share(row)) < _NOTHING
    ]
    said.append(_sentence("Refused", [row for row in rows if row["refused"]]))
    return [sentence for sentence in said if sentence]


def _reaches(row: dict[str, Any], best: dict[str, Any]) -> bool:
    return any(own >= other for own, other in zip(row["top1"], best["top1"], strict=True))


def _same(rows: Sequence[dict[str, Any]], *labels: str) -> bool:
    """Whether these are there and gave the same students."""
    found = [row["top1"] for row in rows if row["label"] in labels]
    return len(found) == len(labels) and all(each == found[0] for each in found)


def _share(row: dict[str, Any]) -> float:
    """Of the loss, what isn't cross entropy."""
    return 1 - float(row["parts"]["ce"]) / float(row["parts"]["loss"])


def _sentence(what: str, rows: Sequence[dict[str, Any]]) -> str:
    return f"{what}: {'; '.join(row['label'] for row in rows)}." if rows else ""


def _is_baseline(row: dict[str, Any]) -> bool:
    return bool(row["loss"]["name"] == "none")


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) < 2:
        return format(values[0], form)
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
