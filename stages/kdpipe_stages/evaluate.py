"""`kdpipe evaluate`: score a model, with or without a teacher to compare it with."""

import json
from typing import TYPE_CHECKING, Any

import click

from kdpipe.errors import ConfigError
from kdpipe.views.draws import CROPS
from kdpipe_stages.class_names import compare_class_names
from kdpipe_stages.command import INDEX, JSON, LIMIT
from kdpipe_stages.options import SETTINGS, TRUST, Given, command, section
from kdpipe_stages.progress import Progress

if TYPE_CHECKING:
    from kdpipe.evaluation import Metrics

# Settings of --config that describe another model where the weights' own header describes theirs.
_OF_MODEL = ("model", "model_kwargs", "num_classes", "input_size", "mean", "std")
_OF_OTHERS = tuple(
    f"teacher.{name}" for name in (*_OF_MODEL, "pretrained", "checkpoint_key", "key_prefix", "class_map", "layers")
)


@command("evaluate", "  kdpipe evaluate runs/student/best.safetensors --index runs/val.index")
@click.argument("file", required=False)
@section(
    "Data",
    INDEX,
    click.option(
        "--cache", metavar="PATH", help="A cache with these views, or its --manifest: agreement with its teacher."
    ),
    click.option("--views", type=click.Choice(list(CROPS)), default="center", help="Views on which to score."),
    LIMIT,
    "loader: workers",
)
@section(
    "Model",
    "teacher: model weights pretrained model_kwargs num_classes input_size batch_size amp_dtype",
    TRUST,
)
@section("Output", JSON)
@SETTINGS
def evaluate(
    file: str | None,
    index_path: str,
    cache: str | None,
    views: str,
    limit: int | None,
    as_json: bool,
    given: Given,
) -> None:
    """Score FILE, weights that kdpipe wrote, or any --model, on the center view or five crops of every sample.

    Prints top-1, top-5, negative log-likelihood and calibration error over the labelled samples; with --cache
    also how often the model agrees with the cached teacher, and the mean KL to it. The header of weights that kdpipe
    wrote names their model and its crop; views in --config have precedence over that crop.
    """
    from kdpipe.cache.manifest import open_reader
    from kdpipe.caching.identity import check_readers_canaries
    from kdpipe.evaluation import evaluate as score
    from kdpipe.loader import Loader
    from kdpipe.models import read_header
    from kdpipe.models.header import Header, parsed
    from kdpipe.shards import Index
    from kdpipe.teacher import Teacher
    from kdpipe.views import ViewsConfig

    weights = given.flags.get("teacher.weights")
    if file and weights:
        raise ConfigError("two files of weights", where="--weights", found=weights, allowed=file)
    weights = file or weights
    # The header of our own weights describes their model; --config may be about another one.
    header = read_header(weights) if weights else Header()
    overrides: dict[str, Any] = {"teacher.weights": weights}
    if weights or "teacher.model" in given.flags:
        # --config may be about an ensemble.
        overrides["teacher.members"] = []
    settings = given.load(overrides, without=_OF_OTHERS if header.model else ())
    index = Index.open(index_path).limit(limit)
    teacher = Teacher(settings.teacher, index.num_classes)
    index.check_labels(teacher.num_classes)
    compare_class_names(index, settings.teacher.weights)
    policy, crops = settings.views, CROPS[views]
    if header.views is not None and not given.config_file and not given.has("views"):
        policy = parsed(ViewsConfig, header.views, weights, "the header's views are none that kdpipe writes")
    reader = open_reader(cache, index, policy, num_classes=teacher.num_classes) if cache else None
    if reader is not None:
        check_readers_canaries(
            reader.cache,
            index,
            policy,
            settings.loader.canary_tolerance,
            required="canary_tolerance" in settings.loader.model_fields_set,
            log=lambda text: click.echo(text, err=True),
        )
    loader = Loader(
        index,
        policy,
        teacher.built.input_size,
        settings.teacher.batch_size,
        loader=settings.loader,
        cache=reader,
        evaluate=crops,
    )
    with Progress(len(index), "images", "evaluating") as progress:

        def batches() -> Any:
            for batch in loader.epoch(0):
                yield batch
                progress.advance(len(batch) // len(crops))

        found = score(
            lambda images: teacher(images.cpu().numpy()).logits,
            batches(),
            teacher.num_classes,
            teacher.device,
            cached=reader.decode if reader else None,
            views=len(crops),
        )
    loader.close()
    click.echo(json.dumps(found) if as_json else _text(found))


def _text(found: "Metrics") -> str:
    percent = {"top1", "top5", "agreement_top1", "agreement_top5"}
    lines = []
    for name, value in found.items():
        if value is None:
            lines.append(f"{name} unknown: no sample has a label")
        elif name in percent:
            lines.append(f"{name} {100 * value:.2f} %")
        else:
            lines.append(f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}")
    return "\n".join(lines)
