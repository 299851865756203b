"""What `python -m benchmarks fidelity` does with its options."""

import json
import shutil
from pathlib import Path
from typing import Any

import click

from benchmarks import book
from benchmarks.fidelity import page
from benchmarks.fidelity.numbers import VIEWS, numbers_index, train_numbers_teacher
from benchmarks.fidelity.run import Size, fidelity
from benchmarks.fidelity.scene import make_scene
from benchmarks.reporting import circumstances, log
from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError
from kdpipe.shards import Index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig
from kdpipe_stages import settings as params

# As it is trained, or merged: a search for faster ways would cost more than it saves.
_RUN = {"form": "merged", "device": "cpu"}


def measured(
    folder: Path,
    shards: str | None,
    limit: int | None,
    weights: str | None,
    config_file: str | None,
    size: dict[str, int],
    out: str | None,
) -> dict[str, Any]:
    """The figures, on the user's samples and teacher or on the numbers.

    Raises:
        ConfigError: options that don't go together, or a document that can't be read.
        KdpipeError: others: an index, weights or params that can't be used.
    """
    if out is not None:
        book.read(out)  # what can't be drawn in the end is refused in the beginning

    if shards is None:
        if config_file is not None:
            raise ConfigError("the numbers have views of their own", where="--config", do="Pass --index too")
        index, views, config = _numbers(folder, limit, weights)
    else:
        settings = params.load(config_file, (), {"teacher.weights": weights})
        index, views, config = Index.open(shards).limit(limit), settings.views, settings.teacher
        if config.weights is None and not (config.pretrained or config.members):
            raise ConfigError("your samples need a teacher of theirs", where="--weights", do="Pass --weights FILE")
    teacher = Teacher(config.model_copy(update=_RUN), index.num_classes)
    return fidelity(make_scene(index, views, teacher), folder, Size(**size), log)


def show(figures: dict[str, Any], shards: str | None, name: str | None, out: str | None, as_json: bool) -> None:
    """Print the figures with their circumstances, and draw the document."""
    report = {"bench": "fidelity", **figures, **circumstances()}
    if out is not None:
        page.write(out, name or ("numbers" if shards is None else Path(shards).stem), report)
    click.echo(json.dumps(report) if as_json else "\n".join(page.lines(report)))


def _numbers(folder: Path, limit: int | None, weights: str | None) -> tuple[Index, ViewsConfig, TeacherConfig]:
    log("writing the numbers")
    indexes = numbers_index(folder)
    if weights is None or not Path(weights).exists():
        log("training the teacher" + ("" if weights is None else f", to be kept as {weights}"))
        trained = train_numbers_teacher(folder, indexes, log)
        weights = trained if weights is None else _kept(trained, Path(weights))
    return indexes["train"].limit(limit), VIEWS, TeacherConfig(weights=weights)


def _kept(trained: str, path: Path) -> str:
    try:
        with atomic_write(path) as partial:
            shutil.copyfile(trained, partial)
    except OSError as e:
        raise ConfigError(f"can't be written ({e.strerror or e})", where="--weights", found=path) from e
    return str(path)
