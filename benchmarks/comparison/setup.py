"""Samples, validation samples, views and a teacher: the digits' or the user's."""

from dataclasses import dataclass
from pathlib import Path

from kdpipe.errors import ConfigError
from kdpipe.evaluation import evaluate
from kdpipe.loader import Loader
from kdpipe.shards import Index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.trainer import Log
from kdpipe.views import ViewsConfig
from kdpipe_stages import demo_run as demo
from kdpipe_stages import settings as params

# Of stride 8: 32 pixels give a map of 4 x 4.
TEACHER = demo.TEACHER.model_copy(update={"model_kwargs": {"patch_size": 1}})
TEACHER_EPOCHS = 10


@dataclass(frozen=True)
class Setup:
    """See the module. `index` may have samples without a label."""

    index: Index
    validation: Index
    views: ViewsConfig
    teacher: TeacherConfig

    @property
    def labelled(self) -> int:
        """Samples with a label."""
        return len(self.index) - self.index.unlabelled


def digits(folder: Path, log: Log) -> Setup:
    """The demo's digits, of which a tenth keep their label, and a teacher that is trained here with all of them."""
    made = demo.Demo(folder, quiet=True)
    made.shards()
    log("training the teacher")
    made.trained("teacher", made.full, TEACHER, "none", seed=0, epochs=TEACHER_EPOCHS)
    teacher = TeacherConfig(weights=str(folder / "teacher" / "best.safetensors"), batch_size=128)
    return Setup(made.train, made.val, demo.VIEWS, teacher)


def given(
    shards: str, val: str | None, limit: int | None, val_limit: int | None, weights: str | None, config_file: str | None
) -> Setup:
    """The user's samples and teacher, whose weights kdpipe wrote or a settings file describes.

    Raises:
        ConfigError: there are no validation samples, or no teacher.
    """
    if val is None:
        raise ConfigError("nothing to validate on", where="--val", do="Pass an index, made by kdpipe index")
    settings = params.load(config_file, (), {"teacher.weights": weights})
    if settings.teacher.weights is None:
        raise ConfigError("no teacher", where="--weights", do="Pass weights, or --config that name some")
    index, validation = Index.open(shards).limit(limit), Index.open(val).limit(val_limit)
    return Setup(index, validation, settings.views, settings.teacher)


def top1(setup: Setup, teacher: Teacher) -> float | None:
    """The teacher's on the center views of the validation samples."""
    size, batch = teacher.built.input_size, teacher.config.batch_size
    loader = Loader(setup.validation, setup.views, size, batch, evaluate=("center",))
    try:
        found = evaluate(
            lambda images: teacher(images.cpu().numpy()).logits, loader.epoch(0), teacher.num_classes, teacher.device
        )
    finally:
        loader.close()
    return found["top1"]
