"""What the commands that cache, or forecast it, take alike: the teacher, the views, what is kept of them."""

from collections.abc import Callable
from typing import Any, get_args

import click

from kdpipe.errors import ConfigError
from kdpipe.targets import FeatureDtype
from kdpipe.views import CROPS, View
from kdpipe_stages import settings as params

_VIEWS = 10_000_000  # numbers below this
_FEATURE = click.Choice(get_args(FeatureDtype))
_OPTIONS = (
    click.option("--teacher", help="timm name, hub name, or package.module:factory."),
    click.option("--weights", help="safetensors file or weights-only pickle."),
    click.option("--checkpoint-key", help="Entry of the weights' file, such as model or model_ema."),
    click.option("--class-map", help="File: which rows of the weights' classifier are the classes."),
    click.option("--pretrained", is_flag=True, default=None, help="timm's published weights from its hub."),
    click.option("--model-kwargs", multiple=True, metavar="KEY=VALUE", help="Argument of the model; repeatable."),
    click.option("--num-classes", type=int, help="Classes, where weights and index don't say."),
    click.option("--views", default="0:1", show_default=True, help="0:4, 7, center, five-crop, or 0:4,center."),
    click.option("--targets", type=click.Choice(["topk", "dense", "none"]), help="Logits to keep [default: topk]."),
    click.option("--k", type=int, help="Classes kept by topk [default: 16]."),
    click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of log-probs or logits."),
    click.option("--pooled", type=_FEATURE, help="Also keep what the classifier sees, and the classifier."),
    click.option("--feature-map", "map", type=_FEATURE, help="Also keep the final map."),
    click.option(
        "--feature-map-rank",
        "map_rank",
        type=int,
        help="Keep the map on a PCA basis of so many components (fewer than channels).",
    ),
    click.option(
        "--last-stage", "tail", is_flag=True, default=None, help="Keep the teacher's last stage too, for scalekd."
    ),
    click.option("--input-size", type=int, help="Side the teacher sees, pixels [default: the model's own]."),
    click.option("--batch-size", type=int, help="Views a forward."),
    click.option("--amp-dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Autocast dtype."),
    click.option(
        "--allow-nondeterministic",
        is_flag=True,
        default=None,
        help="Cache one output of a teacher that is stochastic on purpose; verify then compares averages only.",
    ),
)


def caching_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which takes them by name; see `overrides` and `parse_views`."""
    for option in reversed((*_OPTIONS, params.trust_option)):
        function = option(function)
    return function


def overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that these options stand for, for `params.load`."""
    return params.trusting(flags["trust"]) | {
        "teacher.model": flags["teacher"],
        "teacher.weights": flags["weights"],
        "teacher.checkpoint_key": flags["checkpoint_key"],
        "teacher.class_map": flags["class_map"],
        "teacher.pretrained": flags["pretrained"],
        "teacher.model_kwargs": params.key_values(flags["model_kwargs"]),
        "teacher.num_classes": flags["num_classes"],
        "teacher.input_size": flags["input_size"],
        "teacher.batch_size": flags["batch_size"],
        "teacher.amp_dtype": flags["amp_dtype"],
        "targets.kind": flags["targets"],
        "targets.k": flags["k"],
        "targets.dtype": flags["dtype"],
        "targets.pooled": flags["pooled"],
        "targets.map": flags["map"],
        "targets.map_rank": flags["map_rank"],
        "targets.tail": flags["tail"],
        "caching.allow_nondeterministic": flags["allow_nondeterministic"],
    }


def parse_views(text: str) -> list[View]:
    """The syntax of --views: numbers, a:b with b exclusive, center, five-crop; joined by commas."""
    found: list[View] = []
    for part in text.split(","):
        start, colon, stop = part.strip().partition(":")
        try:
            more: list[View] = (
                list(CROPS[part.strip()])
                if part.strip() in CROPS
                else list(range(int(start), min(_VIEWS + 1, int(stop) if colon else int(start) + 1)))
            )
        except ValueError:
            more = []
        if not more or (isinstance(more[0], int) and not 0 <= more[0] <= int(more[-1]) < _VIEWS):
            allowed = "0:4, 7, center, five-crop, or 0:4,center"
            raise ConfigError("no views", where="--views", found=part, allowed=allowed)
        found += [v for v in more if v not in found]
    return found
