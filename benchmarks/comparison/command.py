"""What `python -m benchmarks losses` does."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.comparison import setup
from benchmarks.comparison.run import STUDENT, STUDENT_KWARGS, Budget, compare
from benchmarks.comparison.table import HEADS, cells
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
    """The figures of the command's options; see `compare`."""
    folder = Path(out)
    theirs = {"--val": val, "--limit": limit, "--val-limit": val_limit, "--weights": weights, "--config": config_file}
    for name, value in theirs.items():
        if shards is None and value is not None:
            raise ConfigError("only for samples of yours", where=name, found=value, do="Pass --index too")
    if shards is None:
        used = setup.digits(folder, log)
    else:
        used = setup.given(shards, val, limit, val_limit, weights, config_file)
    kwargs = params.key_values("--model-kwargs", model_kwargs) or ({} if student else STUDENT_KWARGS)
    distillation = ModelConfig(model=student or STUDENT, model_kwargs=kwargs)
    return compare(used, folder, distillation, Budget(**budget), only, log)


def show(report: dict[str, Any]) -> None:
    """The table on stdout."""
    console = Console(width=150, highlight=False, markup=False)
    table = Table(*HEADS)
    for row in report["rows"]:
        table.add_row(*cells(row))
    console.print(table)
