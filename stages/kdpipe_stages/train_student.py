"""`kdpipe train-student`: train one student, from a cache or without a teacher."""

import json
from typing import Any

import click

from kdpipe.errors import ConfigError
from kdpipe.losses import LOSSES, LossConfig
from kdpipe.shards import Index
from kdpipe.trainer import TrainingJob, train
from kdpipe.trainer import TrainingProgress as Step
from kdpipe_stages import settings as params
from kdpipe_stages.progress import Progress
from kdpipe_stages.signals import asked

# Flags and the settings they stand for.
FLAGS = {
    "student": "student.model",
    "weights": "student.weights",
    "pretrained": "student.pretrained",
    "num_classes": "student.num_classes",
    "input_size": "student.input_size",
    "loss": "loss.name",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "train.seed",
    "amp_dtype": "train.amp_dtype",
    "workers": "loader.workers",
    "views_per_decode": "loader.views_per_decode",
    "view_schedule": "loader.view_schedule",
    "canary_tolerance": "loader.canary_tolerance",
}


@click.command("train-student")
@click.option("--index", "index_path", required=True, help="Index of the training shards, from kdpipe index.")
@click.option("--val", help="Index of the validation shards.")
@click.option(
    "--cache",
    "caches",
    multiple=True,
    help="A teacher's targets, from kdpipe cache-teacher: a cache, or its --manifest. Repeat it for several teachers.",
)
@click.option("--student", help="timm name, hub name, or package.module:factory.")
@click.option("--weights", help="Weights to start from [default: random].")
@click.option("--pretrained", is_flag=True, default=None, help="Start from timm's published weights.")
@click.option("--model-kwargs", multiple=True, metavar="KEY=VALUE", help="Argument of the model; repeatable.")
@click.option("--num-classes", type=int, help="Classes, where cache, weights and index don't say.")
@click.option("--input-size", type=int, help="Side the student sees, pixels [default: the model's own].")
@click.option("--loss", "--objective", "loss", help="Loss, see kdpipe losses; several joined by +: kd+fd.")
@click.option("--temperature", type=float, help="T of every loss that has one; other than 1: dense targets.")
@click.option("--alpha", type=float, help="Alpha of every loss that has one; of kd its weight against labels.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int, help="Samples a step, over all processes.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--seed", type=int, help="Of weights, order and dropout; the views have their own.")
@click.option("--amp-dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Autocast dtype.")
@click.option("--workers", type=int, help="Loader processes.")
@click.option("--views-per-decode", type=int, help="Views of a sample that follow each other, decoded once.")
@click.option("--view-schedule", type=click.Choice(["cycle", "strict"]), help="When epochs outnumber cached views.")
@click.option(
    "--canary-tolerance",
    type=click.IntRange(0, 1),
    help="Levels by which canaries may differ when rendered here [default: 0].",
)
@click.option("--limit", type=int, help="Only the first N training samples.")
@click.option("--out", required=True, help="Folder of the run; an unfinished one goes on.")
@click.option("--overwrite", is_flag=True, help="Delete a run of another job in --out, instead of refusing it.")
@click.option("--dvclive", is_flag=True, help="Log each epoch with dvclive too, in OUT/dvclive.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@params.trust_option
@params.options
def train_student(
    index_path: str,
    val: str | None,
    caches: tuple[str, ...],
    limit: int | None,
    out: str,
    overwrite: bool,
    dvclive: bool,
    as_json: bool,
    config_file: str | None,
    sets: tuple[str, ...],
    model_kwargs: tuple[str, ...],
    trust: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train a student, with a teacher's cached targets or with labels only.

    Leaves best.safetensors, last.safetensors, metrics.jsonl and summary.json in --out. Repeat the command after
    an interruption: it goes on from its checkpoint. Start it under torchrun for several processes.
    """
    overrides = {setting: flags[flag] for flag, setting in FLAGS.items()} | params.trusting(trust)
    overrides["student.model_kwargs"] = params.key_values(model_kwargs)
    numbers = {name: flags[name] for name in ("temperature", "alpha") if flags[name] is not None}
    settings = params.load(config_file, sets, overrides)
    if numbers:
        overrides |= of_loss(settings.loss, numbers)
        settings = params.load(config_file, sets, overrides)
    job = TrainingJob(
        index=Index.open(index_path).limit(limit),
        validation=Index.open(val) if val else None,
        caches=caches,
        views=settings.views,
        student=settings.student,
        loss=settings.loss,
        train=settings.train,
        loader=settings.loader,
    )
    with _Shown() as shown, asked() as stop:
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

    def step(self, step: Step) -> None:
        """A step; the first tells how much there is to do."""
        if self._progress is None:
            self._progress = Progress(step.total - step.before, "images", "training")
            self._samples = step.before
        count, self._samples = step.samples - self._samples, step.samples
        self._progress.advance(count, epoch=f"{step.epoch}/{step.epochs}", loss=step.loss)


def of_loss(loss: LossConfig, numbers: dict[str, float]) -> dict[str, float]:
    """The settings that --temperature and --alpha stand for: those of the losses that have them."""
    found: dict[str, float] = {}
    for number, value in numbers.items():
        having = [o.name for o in loss.losses if number in o.Config.model_fields]
        if not having:
            all_ = [name for name, o in LOSSES.items() if number in o.Config.model_fields]
            raise ConfigError(
                f"loss {loss.name} has no {number}", where=f"--{number}", found=value, allowed=", ".join(all_)
            )
        found |= {f"loss.{name.replace('-', '_')}.{number}": value for name in having}
    return found
