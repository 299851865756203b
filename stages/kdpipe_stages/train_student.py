"""`kdpipe train-student`: train one student, from a cache or without a teacher."""

import json
from typing import TYPE_CHECKING, Any

import click

from kdpipe.errors import ConfigError
from kdpipe_stages.command import INDEX, JSON, LIMIT
from kdpipe_stages.options import SETTINGS, TRUST, Given, command, section
from kdpipe_stages.progress import Progress
from kdpipe_stages.signals import stop_requests

if TYPE_CHECKING:
    from kdpipe.losses import LossConfig
    from kdpipe.trainer import TrainingProgress


@command(
    "train-student",
    """\
  kdpipe train-student --index runs/train.index --val runs/val.index \\
      --cache runs/cache.zarr --student resnet18 --loss kd --out runs/student""",
)
@section(
    "Data",
    INDEX,
    click.option("--val", metavar="PATH", help="Index of the validation shards; by default nothing is evaluated."),
    click.option(
        "--cache",
        "caches",
        metavar="PATH",
        multiple=True,
        help="Cached targets, from kdpipe cache-teacher: a cache, or its --manifest. Repeat it for several teachers. "
        "The views are those of the cache where --config and --set give none.",
    ),
    LIMIT,
    "loader: workers views_per_decode view_schedule canary_tolerance",
)
@section(
    "Student",
    "student.model --student",
    "student: weights pretrained model_kwargs num_classes input_size",
    TRUST,
)
@section(
    "Loss",
    "loss.name --loss --objective",
    click.option(
        "--temperature", type=float, help="Temperature of every named loss that has one; if not 1, needs dense targets."
    ),
    click.option(
        "--alpha", type=float, help="Alpha of every named loss that has one; of kd the weight of the teacher."
    ),
    click.option("--label-smoothing", type=float, help="Label smoothing of every named loss that has it."),
)
@section(
    "Optimisation",
    "train: epochs batch_size opt lr weight_decay sched warmup_epochs clip_grad drop_path",
    "train: model_ema model_ema_decay amp_dtype seed",
)
@section(
    "Output",
    click.option("--out", metavar="DIR", required=True, help="Folder of the run; an unfinished run is resumed."),
    click.option("--overwrite", is_flag=True, help="Delete a run with other settings in --out, instead of refusing."),
    click.option("--dvclive", is_flag=True, help="Also log each epoch with dvclive, in OUT/dvclive."),
    JSON,
)
@SETTINGS
def train_student(
    index_path: str,
    val: str | None,
    caches: tuple[str, ...],
    limit: int | None,
    out: str,
    overwrite: bool,
    dvclive: bool,
    as_json: bool,
    given: Given,
    **hyperparameters: float | None,
) -> None:
    """Train a student, with a teacher's cached targets or with labels only.

    Writes best.safetensors, last.safetensors, metrics.jsonl and summary.json to --out. Repeat the command after an
    interruption: it resumes from its last checkpoint. Start it under torchrun for several processes.
    """
    from kdpipe.cache.manifest import cached_views
    from kdpipe.shards import Index
    from kdpipe.trainer import TrainingJob, train

    settings = given.load()
    if values := {name: value for name, value in hyperparameters.items() if value is not None}:
        settings = given.load(of_losses(settings.loss, values))
    views = settings.views
    if caches and "views" not in settings.model_fields_set:
        views = cached_views(caches[0])
        click.echo("views: those of the cache", err=True)
    job = TrainingJob(
        index=Index.open(index_path).limit(limit),
        validation=Index.open(val) if val else None,
        caches=caches,
        views=views,
        student=settings.student,
        loss=settings.loss,
        train=settings.train,
        loader=settings.loader,
    )
    with _Shown() as shown, stop_requests() as stop:
        summary = train(job, out, log=shown.log, on_step=shown.step, stop=stop, overwrite=overwrite, dvclive=dvclive)
    if summary is None:
        raise stop.stopped()
    click.echo(json.dumps(summary) if as_json else _text(summary, out))


def _text(summary: dict[str, Any], out: str) -> str:
    best = summary["best"]
    scores = best["validation"]
    score = f", top-1 {100 * scores['top1']:.2f} %" if scores and scores["top1"] is not None else ""
    return f"{out}/best.safetensors: {summary['student']} after epoch {best['epoch']} of {summary['epochs']}{score}"


class _Shown:
    """Remarks and progress on stderr; stdout is for the result."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._samples = 0

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.close()

    def log(self, text: str) -> None:
        """A line."""
        if self._progress is not None:
            self._progress.log(text)
        else:
            click.echo(text, err=True)

    def step(self, step: "TrainingProgress") -> None:
        """A step; the first has the total."""
        if self._progress is None:
            self._progress = Progress(step.total - step.before, "images", "training")
            self._samples = step.before
        count, self._samples = step.samples - self._samples, step.samples
        self._progress.advance(count, epoch=f"{step.epoch}/{step.epochs}", loss=step.loss)


def of_losses(loss: "LossConfig", values: dict[str, float]) -> dict[str, float]:
    """The settings that --temperature and the like stand for: those of the named losses that have them."""
    from kdpipe.losses import LOSSES

    found: dict[str, float] = {}
    for name, value in values.items():
        having = [one.name for one in loss.losses if name in one.Config.model_fields]
        if not having:
            all_ = [other for other, one in LOSSES.items() if name in one.Config.model_fields]
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"loss {loss.name} has no {name}", where=option, found=value, allowed=", ".join(all_))
        found |= {f"loss.{one.replace('-', '_')}.{name}": value for one in having}
    return found
