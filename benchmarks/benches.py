"""The sections of docs/benchmarks.md: which figures of each bench its table has, and the bounds that they must hold."""

import operator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.report import MISSING, Report, details, figure, grid, median

_SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        figures: ours, the reference's, and their ratio: paths into the report (keys joined by dots); one, or all.
        form: how to write the first two.
        bound: of our figure or of the ratio: "ours ≤ 2", "ratio ≥ 1.8".
    """

    label: str
    figures: tuple[str, ...]
    form: str = ".2f"
    bound: str = ""

    def cells(self, report: Report) -> list[str]:
        """The line: label, figures, bound, and whether the bound is met."""
        values = [_find(report, path) for path in self.figures]
        forms = (self.form, self.form, ".2f")
        found = [figure(value, form) for value, form in zip(values, forms, strict=False)]
        return [self.label, *found, *[""] * (3 - len(found)), self.bound, self._verdict(values)]

    def _verdict(self, values: list[Any]) -> str:
        if not self.bound:
            return ""
        of, sign, limit = self.bound.split()
        value = median(values[0] if of == "ours" else values[2])
        return MISSING if value is None else "met" if _SIGNS[sign](value, float(limit)) else "**not met**"


@dataclass(frozen=True)
class Bench:
    """One bench as `python -m benchmarks all` runs it, and its section of the document.

    Attributes:
        arguments: of its command.
        rows: of its table.
        details: further keys of the report.
        ratio: the title of that column.
        photographs: measures little on the digits: receives the user's --index.
    """

    name: str
    arguments: tuple[str, ...]
    rows: tuple[Row, ...]
    details: tuple[str, ...] = ()
    ratio: str = "ours / reference"
    photographs: bool = False
    heads: tuple[str, ...] = field(default=("", "ours", "reference"))

    def draw(self, report: Report) -> list[str]:
        """Its tables; columns that no row uses are left out."""
        lines = [[*self.heads, self.ratio, "bound", ""], *(row.cells(report) for row in self.rows)]
        used = [i for i in range(len(lines[0])) if i == 0 or any(line[i] for line in lines[1:])]
        parts = [grid([[line[i] for i in used] for line in lines])]
        if self.details:
            parts.append(details({name: report.get(name, MISSING) for name in self.details}))
        if "operations" in report:
            ops = report["operations"].items()
            table = [[n, *(figure(op.get(key), ".3f") for key in ("ms", "pil_ms")), _quotient(op)] for n, op in ops]
            parts.append(grid([["operation", "ours, ms", "PIL, ms", "PIL / ours"], *table]))
        return parts


def _quotient(op: dict[str, Any]) -> str:
    ours, reference = median(op.get("ms")), median(op.get("pil_ms"))
    return figure(reference / ours if ours and reference is not None else None, ".1f")


def _find(report: Report, path: str) -> Any:
    value: Any = report
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


_PARITY = (
    Row("largest difference, dense float32", ("max_loss_difference",), ".2g", "ours ≤ 1e-06"),
    Row("largest difference, dense float16", ("differences.float16",), ".2g"),
    Row("largest difference, top 16 of 100 classes, float16", ("differences.top16",), ".2g"),
    Row("our KD against timm's", ("timm_difference",), ".2g"),
)
_SPEED = ("images_per_second", "reference_images_per_second", "ratio")
_NCHW = ("images_per_second", "nchw_images_per_second", "ratio_nchw")
_MERGED = ("images_per_second", "merged_images_per_second", "ratio_merged")
_TEACHER = (
    Row("images a second, as trained", _SPEED, ".1f", "ratio ≥ 1.6"),
    Row("images a second, forced to NCHW", _NCHW, ".1f", "ratio ≥ 3"),
    Row("images a second, merged alone", _MERGED, ".1f"),
    Row("tuning's choices beyond the fastest of all", ("search_loss",), ".3f", "ours ≤ 0.05"),
)
_TEACHER_DETAILS = (
    *("model", "size", "batch", "amp_dtype", "device", "threads", "search_seconds", "share_of_matmul"),
    *("matmul_gflop_per_second", "share_of_copy", "copy_gb_per_second"),
)


def _views(label: str, reference: str, speedup: str, ending: str, bound: str = "") -> Row:
    keys = (f"core_ms_per_view{ending}", f"{reference}_core_ms_per_view{ending}", f"{speedup}{ending}")
    return Row(label, keys, bound=bound)


BENCHES = (
    Bench("parity", ("parity",), _PARITY, ("policy", "steps", "first_loss", "last_loss")),
    Bench("parity-crop", ("parity", "--policy", "crop"), _PARITY, ("policy", "steps", "first_loss", "last_loss")),
    Bench(
        "views",
        ("views", "--limit", "120", "--repeats", "5"),
        (
            _views("one view a decode, timm float", "reference", "speedup", "", "ratio ≥ 1.8"),
            _views("one view a decode, timm uint8", "reference_uint8", "speedup_uint8", ""),
            _views("ten views a decode, timm float", "reference", "speedup", "_ten_views", "ratio ≥ 4"),
            _views("ten views a decode, timm uint8", "reference_uint8", "speedup_uint8", "_ten_views"),
        ),
        ("images", "image_kb", "size", "repeats", "reference_crashes"),
        ratio="reference / ours",
        photographs=True,
    ),
    Bench(
        "caching",
        ("caching", "--limit", "400"),
        (Row("core-ms a view", ("added_core_ms_per_view", "reference_core_ms_per_view", "ratio"), bound="ours ≤ 2"),),
        ("images", "image_kb", "size", "views_per_decode"),
        photographs=True,
    ),
    Bench(
        "targets",
        ("targets",),
        (
            Row("core-us a row", ("core_us_per_row", "reference_core_us_per_row", "ratio"), ".1f", "ours ≤ 15"),
            Row("bytes a view", ("bytes_per_view", "reference_bytes_per_view", "size_ratio"), ".1f"),
        ),
        ("rows", "classes", "k", "teacher_top1", "retained_mass"),
    ),
    Bench(
        "step",
        ("step",),
        (Row("core-ms a step", ("core_ms_with_cache", "core_ms_alone", "ratio_spread"), ".0f", "ratio ≤ 1.05"),),
        ("student", "size", "batch", "classes", "steps"),
    ),
    Bench("teacher", ("teacher", "--model", "slak_tiny"), _TEACHER, _TEACHER_DETAILS),
    Bench(
        "teacher-bf16",
        ("teacher", "--model", "slak_tiny", "--amp-dtype", "bfloat16"),
        _TEACHER[:3],
        _TEACHER_DETAILS,
    ),
    Bench(
        "workers",
        ("workers",),
        (
            Row(
                "samples a second",
                ("samples_per_second", "reference_samples_per_second", "ratio"),
                ".3g",
                "ratio ≥ 0.95",
            ),
        ),
        ("teacher", "workers", "samples", "size", "tasks"),
    ),
    Bench(
        "cluster",
        ("cluster",),
        (
            Row("workers busy", ("busy",), ".3f", "ours ≥ 0.95"),
            Row("the scheduler's memory early, MB", ("scheduler_mb_early",), ".0f"),
            Row("the scheduler's memory late, MB", ("scheduler_mb_late",), ".0f"),
        ),
        ("tasks", "workers", "seconds_per_task"),
    ),
    Bench(
        "memory",
        ("memory",),
        (Row("peak at many tasks and at one, MB", ("peak_mb_many", "peak_mb_one", "ratio"), ".0f", "ratio ≤ 1.1"),),
        ("tasks", "samples_a_task", "views", "size"),
        heads=("", "many", "one"),
        ratio="many / one",
    ),
    Bench(
        "index-open",
        ("index-open",),
        (
            Row("opening, seconds", ("seconds",), bound="ours < 2"),
            Row("private memory added, MB", ("added_mb",), ".0f", "ours < 600"),
            Row("resident memory added, MB", ("resident_mb",), ".0f", "ours < 600"),
            Row("all pages read: share of the memory, MB a process", ("shared_mb_each",), ".0f"),
            Row("all pages read: as if alone, MB a process", ("resident_mb_each",), ".0f"),
            Row("labels checked, fingerprint and Loader, seconds", ("start_seconds",)),
            Row("an epoch's order, seconds", ("epoch_order_seconds",)),
            Row("an epoch's order, peak MB", ("epoch_order_mb",), ".0f"),
        ),
        ("samples", "readers"),
    ),
)


def draw(section: str, report: Report) -> list[str]:
    """A section of the document, for `report.write`."""
    return next(bench for bench in BENCHES if bench.name == section).draw(report)
