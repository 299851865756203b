"""What `python -m benchmarks fidelity` does with its options."""

import shutil
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.fidelity.run import fidelity
from benchmarks.fidelity.synthetic_teacher import VIEWS, synthetic_index, train_synthetic_teacher
from benchmarks.fidelity.tables import draw
from benchmarks.reporting import circumstances, log
from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError
from kdpipe.fidelity.loss_cases import loss_cases
from kdpipe.fidelity.run import Size
from kdpipe.fidelity.setup import make_setup
from kdpipe.shards import Index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.views import ViewsConfig
from kdpipe_stages import settings as params

_STEPS = 20


def measured(
    folder: Path,
    shards: str | None,
    limit: int | None,
    weights: str | None,
    config_file: str | None,
    size: Size,
    out: str | None,
) -> dict[str, Any]:
    """The report, on the user's samples and teacher or on the synthetic classes.

    Raises:
        ConfigError: options that don't go together, or a document that can't be read.
        KdpipeError: others: an index, weights or settings that can't be used.
    """
    if out is not None:
        report.read(out)  # what can't be drawn in the end is refused in the beginning
    if shards is None:
        if config_file is not None:
            raise ConfigError("the synthetic classes have views of their own", where="--config", do="Pass --index too")
        index, views, config = _synthetic(folder, limit, weights)
    else:
        settings = params.load(config_file, (), {"teacher.weights": weights})
        index, views, config = Index.open(shards).limit(limit), settings.views, settings.teacher
        if config.weights is None and not (config.pretrained or config.members):
            raise ConfigError("your samples need a teacher of theirs", where="--weights", do="Pass --weights FILE")
    teacher = Teacher(config.model_copy(update={"form": "merged", "device": "cpu"}), index.num_classes)
    found = fidelity(make_setup(index, views, teacher), loss_cases(), folder, size, _STEPS, log)
    return {"bench": "fidelity", **found, **circumstances()}


def keep(out: str, name: str, found: dict[str, Any]) -> None:
    """Put a report into the document, in the place of its last one."""
    report.write(out, {**report.read(out), name: found}, draw)


def _synthetic(folder: Path, limit: int | None, weights: str | None) -> tuple[Index, ViewsConfig, TeacherConfig]:
    log("writing the synthetic classes")
    indexes = synthetic_index(folder)
    if weights is None or not Path(weights).exists():
        log("training the teacher" + ("" if weights is None else f", to be kept as {weights}"))
        trained = train_synthetic_teacher(folder, indexes, log)
        weights = trained if weights is None else _kept(trained, Path(weights))
    return indexes["train"].limit(limit), VIEWS, TeacherConfig(weights=weights)


def _kept(trained: str, path: Path) -> str:
    try:
        with atomic_write(path) as partial:
            shutil.copyfile(trained, partial)
    except OSError as e:
        raise ConfigError(f"can't be written ({e.strerror or e})", where="--weights", found=path) from e
    return str(path)
