"""Names of classes, of an index and of weights."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdpipe.shards import Index


def compare_class_names(index: "Index", weights: str | None) -> None:
    """Refuse weights that kdpipe wrote for other classes; print where one of both has no names.

    Raises:
        IdentityError: naming the first three classes that differ.
    """
    from kdpipe.models import read_header  # imports torch
    from kdpipe.shards.classes import require_same

    header = read_header(weights) if weights else None
    if header is None or header.model is None:  # other people's weights have no names
        return
    remark = require_same(index.classes, header.classes, weights, "the weights")
    if remark:
        click.echo(remark, err=True)
