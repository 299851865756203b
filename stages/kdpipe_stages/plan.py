"""`kdpipe plan`: a cache's size and time, before anything is spent on it."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from kdpipe.errors import ConfigError
from kdpipe_stages.caching_options import caching_options, parse_views
from kdpipe_stages.class_names import compare_class_names
from kdpipe_stages.command import INDEX, LIMIT
from kdpipe_stages.options import SETTINGS, Given, command, section

if TYPE_CHECKING:
    from kdpipe.estimate.measure import SampleMeasurements


@command(
    "plan",
    """\
  kdpipe plan --index runs/train.index --teacher slak_tiny \\
      --weights slak_tiny.pth --views 0:4 --student resnet18 --epochs 100""",
)
@section("Data", INDEX, LIMIT)
@caching_options
@section(
    "Student",
    "student.model --student",
    "train: epochs",
    "train.batch_size --student-batch-size",
)
@section(
    "Forecast",
    click.option("--machines", default="1,2,4,8", help="Numbers of machines like this one."),
    click.option("--seconds", type=click.FloatRange(min=1), default=60, help="Seconds to spend on measuring."),
    click.option("--json", "as_json", is_flag=True, help="Print everything as JSON; seconds and bytes."),
)
@SETTINGS
def plan(
    index_path: str,
    views: str,
    limit: int | None,
    machines: str,
    seconds: float,
    as_json: bool,
    given: Given,
) -> None:
    """Forecast bytes and hours of a cache from 2 % of the samples and a minute; nothing is written.

    Takes the options of cache-teacher, and of train-student with --student. Ranges come from the spread of what was
    measured.
    """
    from kdpipe.caching.poor_teacher import after_run, before_run, refuse
    from kdpipe.estimate.forecast import forecast, sampled
    from kdpipe.estimate.measure import measure
    from kdpipe.shards import Index
    from kdpipe.teacher import Teacher
    from kdpipe.trainer import TrainingJob
    from kdpipe.trainer.forecast import forecast_student
    from kdpipe_stages.plan_text import show

    settings = given.load()
    student = given.flags.get("student.model")
    counts, wanted = _machines(machines), parse_views(views)
    needs = settings.loss.requirements
    if student is not None and (not needs.targets or needs.features):
        what = "takes more than logits from a teacher, which only a cache has" if needs.features else "takes nothing"
        raise ConfigError(
            f"a student's steps can't be timed: the loss {what}",
            where="loss.name",
            found=settings.loss.name,
            allowed="kd, nkd, dkd, dist and the like",
            do="Plan with --set loss.name=kd: most of a step is the student",
        )
    if student is not None and settings.targets.kind == "none":
        what = "a student's steps can't be timed without logits"
        raise ConfigError(what, where="--targets", found="none", do="Plan the student with --targets dense")
    index = Index.open(index_path).limit(limit)
    began = time.monotonic()
    compare_class_names(index, settings.teacher.weights)
    teacher = Teacher(settings.teacher, index.num_classes)
    loading = time.monotonic() - began
    poor = before_run(settings.teacher, teacher.num_classes, index, strict=settings.caching.strict)
    seconds = max(1.0, seconds - loading)
    measured = measure(
        index,
        settings.views,
        teacher,
        settings.targets,
        wanted,
        caching=settings.caching,
        seconds=seconds * (0.75 if student else 1.0),
        log=lambda what: click.echo(f"plan: {what}", err=True) if sys.stderr.isatty() else None,
    )
    report: dict[str, Any] = {
        "shards": str(index.path),
        "view_spec": views,
        "teacher": {**teacher.built.metadata(), "device": str(teacher.device), "render_threads": measured.threads},
        "sampled": sampled(index, measured),
        **forecast(index, measured, wanted, counts, loading),
        "student": None,
    }
    if student is not None:
        job = TrainingJob(index, settings.views, settings.student, settings.loss, settings.train, settings.loader)
        one = forecast(index, measured, wanted, [1], loading)["machines"][0]["seconds"]
        report["student"] = forecast_student(job, measured, teacher.built, one, 0.25 * seconds)
    quality = next(c for c in measured.candidates if c.encoding == measured.encoding).quality
    poor += after_run(quality.means(), quality.labelled, settings.teacher, teacher.num_classes)
    report["remarks"] = poor + _remarks(report, measured, settings.teacher.form, settings.views.remarks())
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report)
    if settings.caching.strict:
        refuse(poor, teacher.built.name)


# Seconds of the device from which on tuning has the minute that compiling takes.
_LONG = 3000.0


def _machines(text: str) -> list[int]:
    try:
        found = [int(item) for item in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise ConfigError("not numbers of machines", where="--machines", found=text, allowed="1,2,4,8")
    return found


def _remarks(report: dict[str, Any], measured: "SampleMeasurements", form: str, others: list[str]) -> list[str]:
    device, threads = report["teacher"]["device"], measured.threads
    found = [*others, f"a machine is counted with what was measured here: one {device}, {threads} render threads"]
    from kdpipe.teacher import devices_here

    gpus = len(devices_here())
    if device != "cpu" and gpus > 1:
        found.append(
            f"cache-teacher uses all {gpus} GPUs here: unless rendering takes longest, as fast as {gpus} machines"
        )
    alone = report["seconds_alone"]
    if device == "cpu":
        found.append("teacher and rendering share the cores: cache-teacher --workers N on one machine gains little")
    elif alone["rendering"] > alone["teacher"]:
        waits = 100 * (1 - alone["teacher"] / alone["rendering"])
        found.append(f"rendering takes longest: the device waits {waits:.0f} % of the time; give it more cores")
    if form == "fastest" and report["device_seconds"]["mid"] > _LONG:
        found.append("so long a run tries to compile the teacher, which this forecast didn't: it may be faster")
    if report["sampled"]["share"] > 0.02:
        found.append("the set is small: the sample is more than 2 % of it")
    if len(measured.sample) < 2:
        found.append("a single block: its spread, and so the ranges of bytes, are unknown")
    return found
