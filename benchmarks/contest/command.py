"""What `python -m benchmarks losses` does."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contest import material
from benchmarks.contest.contest import STUDENT, STUDENT_KWARGS, Budget, contest
from benchmarks.contest.page import about
from benchmarks.contest.table import HEADS, cells, reading
from benchmarks.reporting import log
from kdpipe.errors import ConfigError
from kdpipe.models import ModelConfig
from kdpipe_stages import settings as params


def measure(
    *,
    shards: str | None,
    val: str | None,
    limit: int | None,
    val_limit: int | None,
    weights: str | None,
    config_file: str | None,
    student: str | None,
    model_kwargs: tuple[str, ...],
    only: tuple[str, ...],
    out: str,
    **budget: Any,
) -> dict[str, Any]:
    """The figures of the command's options; see `contest`."""
    folder = Path(out)
    theirs = {"--val": val, "--limit": limit, "--val-limit": val_limit, "--weights": weights, "--config": config_file}
    for name, value in theirs.items():
        if shards is None and value is not None:
            raise ConfigError("the digits are there as they are", where=name, found=value, do="Pass --index too")
    if shards is None:
        taken = material.digits(folder, log)
    else:
        taken = material.given(shards, val, limit, val_limit, weights, config_file)
    kwargs = params.key_values("--model-kwargs", model_kwargs) or ({} if student else STUDENT_KWARGS)
    distillation = ModelConfig(model=student or STUDENT, model_kwargs=kwargs)
    return contest(taken, folder, distillation, Budget(**budget), only, log)


def show(report: dict[str, Any]) -> None:
    """The table and its reading on stdout."""
    console = Console(width=150, highlight=False, markup=False)
    console.print(" ".join(about(report)))
    table = Table(*HEADS)
    for row in report["rows"]:
        table.add_row(*cells(row))
    console.print(table)
    console.print(" ".join(reading(report["rows"])))
