"""Options that cache-teacher and plan share, and the syntax of --views."""

import click

from kdpipe.errors import ConfigError
from kdpipe.views.draws import CROPS, View
from kdpipe_stages.command import F
from kdpipe_stages.options import TRUST, section

_VIEWS = 10_000_000  # numbers below this
_GROUPS = (
    section(
        "Teacher",
        "teacher.model --teacher",
        "teacher: weights checkpoint_key key_prefix class_map pretrained model_kwargs num_classes input_size",
        "teacher: batch_size amp_dtype",
        "caching: allow_nondeterministic strict",
        TRUST,
    ),
    section(
        "Views",
        click.option(
            "--views",
            default="0:1",
            help="Views to cache: 0:4 (views 0 to 3), 7, center, five-crop, or several joined by commas.",
        ),
    ),
    section(
        "Targets",
        "targets.kind --targets",
        "targets: k dtype pooled",
        "targets.map --feature-map",
        "targets.map_rank --feature-map-rank",
        "targets.tail --last-stage",
    ),
)


def caching_options(function: F) -> F:
    """Add the options to a command, which takes `views` and, in `given`, the settings."""
    for group in reversed(_GROUPS):
        function = group(function)
    return function


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
            raise ConfigError(f"invalid --views {part!r}; expected a range 0:4 (0 to 3), a number, center or five-crop")
        found += [v for v in more if v not in found]
    return found
