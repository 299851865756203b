"""The run's metrics as dvclive writes them, for DVC's plots and for live views of an experiment.

metrics.jsonl stays the truth: what dvclive has is made from its lines, from the first again after an interruption,
so that an epoch that came twice is there once.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdpipe.errors import CheckpointError, TrainingError
from kdpipe.trainer.checkpoint import read_line
from kdpipe.trainer.files import METRICS

FOLDER = "dvclive"


class LiveLog:
    """Follows the metrics.jsonl of a run in the folder dvclive beside it; logs nothing unless `on`.

    Args:
        run: folder of the run.
        on: whether to follow.

    Raises:
        TrainingError: dvclive is not installed.
        CheckpointError: a line of metrics.jsonl is damaged (from `update`).
    """

    def __init__(self, run: Path, on: bool) -> None:
        self._run, self._on, self._read = run, on, 0
        self._live: Any = None
        if on:
            try:
                import dvclive  # noqa: F401 - required before a step is trained
            except ImportError as e:
                raise TrainingError("dvclive is not installed", do="pip install 'kdpipe[dvc]'") from e

    def update(self) -> None:
        """Log the lines that have come since."""
        path = self._run / METRICS
        if not self._on or not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for line in lines:
            try:
                found = read_line(line)
            except ValueError as e:
                what = f"a line of the metrics can't be read: {' '.join(str(e).split())[:200]}"
                raise CheckpointError(what, where=path, do="Choose another --out, or leave --dvclive out") from e
            self._log(found)

    def clear(self) -> None:
        """Delete what a former run logged."""
        shutil.rmtree(self._run / FOLDER, ignore_errors=True)

    def close(self) -> None:
        """Let dvclive finish its files."""
        if self._live is not None:
            self._live.end()

    def _log(self, line: dict[str, Any]) -> None:
        if self._live is None:
            from dvclive import Live

            # What belongs to the user's repository, his experiments and his dvc.yaml, is left to him.
            self._live = Live(str(self._run / FOLDER), save_dvc_exp=False, dvcyaml=False)
        self._live.step = line["epoch"]
        for name, value in _scalars(line):
            self._live.log_metric(name, value)
        self._live.next_step()


def _scalars(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield "lr", line["lr"]
    for part in ("train", "validation"):
        for name, value in (line[part] or {}).items():
            # A score that needs labels is None without them.
            if isinstance(value, float):
                yield f"{part}/{name}", value
