"""`kdpipe evaluate`: score a model, whoever made it, in one way."""

import json
from typing import Any

import click

from kdpipe.cache.manifest import open_reader
from kdpipe.caching.identity import check_readers_canaries
from kdpipe.errors import ConfigError
from kdpipe.evaluation import Metrics
from kdpipe.evaluation import evaluate as score
from kdpipe.loader import Loader
from kdpipe.models import read_header
from kdpipe.models.header import Header, parsed
from kdpipe.shards import Index
from kdpipe.teacher import Teacher
from kdpipe.views import CROPS, ViewsConfig
from kdpipe_stages import settings as params
from kdpipe_stages.progress import Progress

# What a params file says of another model, how its weights are read and how it is run: our own weights say of theirs.
_OF_MODEL = ("model", "model_kwargs", "num_classes", "input_size", "mean", "std")
_OF_OTHERS = tuple(f"teacher.{name}" for name in (*_OF_MODEL, "pretrained", "checkpoint_key", "class_map", "layers"))


@click.command("evaluate")
@click.argument("file", required=False)
@click.option("--index", "index_path", required=True, help="Index of the shards, from kdpipe index.")
@click.option("--cache", help="A cache with these views, or its record: agreement with its teacher.")
@click.option("--views", type=click.Choice(list(CROPS)), default="center", show_default=True, help="What to score on.")
@click.option("--model", help="timm name, hub name, or package.module:factory [default: what FILE says].")
@click.option("--weights", help="safetensors file or weights-only pickle; the same as FILE.")
@click.option("--pretrained", is_flag=True, default=None, help="timm's published weights from its hub.")
@click.option("--model-kwargs", multiple=True, metavar="KEY=VALUE", help="Argument of the model; repeatable.")
@click.option("--num-classes", type=int, help="Classes, where weights and index don't say.")
@click.option("--input-size", type=int, help="Side the model sees, pixels.")
@click.option("--batch-size", type=int, help="Samples a forward.")
@click.option("--amp-dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Autocast dtype.")
@click.option("--workers", type=int, help="Loader processes.")
@click.option("--limit", type=int, help="Only the first N samples.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON.")
@params.trust_option
@params.options
def evaluate(
    file: str | None,
    index_path: str,
    cache: str | None,
    views: str,
    limit: int | None,
    as_json: bool,
    config_file: str | None,
    sets: tuple[str, ...],
    model_kwargs: tuple[str, ...],
    workers: int | None,
    trust: tuple[str, ...],
    **flags: Any,
) -> None:
    """Score FILE, weights that kdpipe wrote, or any --model, on the center view or five crops of every sample.

    Prints top-1, top-5, negative log-likelihood and calibration error over the labelled samples; with --cache
    also how often the model agrees with the cached teacher, and the mean KL to it. Weights that kdpipe wrote
    say which model they are of and how it crops; --config overrules the latter.
    """
    if file and flags["weights"]:
        raise ConfigError("two files of weights", where="--weights", found=flags["weights"], allowed=file)
    weights = file or flags["weights"]
    # What our own weights say of their model comes before a params file, which may be about another.
    said = read_header(weights) if weights else Header()
    asked = {**flags, "weights": weights, "model_kwargs": params.key_values(model_kwargs)}
    overrides = {f"teacher.{name}": value for name, value in asked.items()} | params.trusting(trust)
    overrides["loader.workers"] = workers
    if weights or flags["model"]:
        # A params file may be about a teacher of several models.
        overrides["teacher.members"] = []
    settings = params.load(config_file, sets, overrides, without=_OF_OTHERS if said.model else ())
    index = Index.open(index_path).limit(limit)
    teacher = Teacher(settings.teacher, index.num_classes)
    index.check_labels(teacher.num_classes)
    policy, crops = settings.views, CROPS[views]
    if said.views is not None and not config_file and not any(word.startswith("views.") for word in sets):
        policy = parsed(ViewsConfig, said.views, weights, "the header's views are none that kdpipe writes")
    reader = open_reader(cache, index, policy, num_classes=teacher.num_classes) if cache else None
    if reader is not None:
        check_readers_canaries(
            reader.cache,
            index,
            policy,
            settings.loader.canary_tolerance,
            asked="canary_tolerance" in settings.loader.model_fields_set,
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


def _text(found: Metrics) -> str:
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
