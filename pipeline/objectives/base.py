"""What every objective is: needs it declares, and a call that returns its loss and the loss's parts."""

from dataclasses import dataclass
from typing import Protocol

import torch

from pipeline.errors import TargetsError
from pipeline.targets import Labels, Targets


@dataclass(frozen=True)
class Needs:
    """What an objective takes.

    Attributes:
        labels: it has a term against the ground truth.
        targets: it can't do without the teacher's targets.
        dense: of those it needs every class's own value rather than the top k.
    """

    labels: bool
    targets: bool
    dense: bool


@dataclass(frozen=True)
class Reduction:
    """Sizes of a whole batch, so that parts of it add up to its mean.

    A rank divides the sum over its rows by the global count and multiplies by `world`, because data-parallel
    training averages gradients over ranks. The result depends neither on how many ranks there are nor on how
    the rows are dealt to them.

    Attributes:
        rows: of the batch over all ranks.
        labelled: those with a label.
        world: number of ranks.
    """

    rows: int
    labelled: int
    world: int = 1

    def over_rows(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over all rows, from this rank's sum."""
        return total * (self.world / max(1, self.rows))

    def over_labelled(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over labelled rows, from this rank's sum; 0 where the batch has none."""
        return total * (self.world / max(1, self.labelled))


class Objective(Protocol):
    """A loss over one batch."""

    @property
    def needs(self) -> Needs:
        """What it takes."""
        ...

    def __call__(
        self, logits: torch.Tensor, labels: Labels, targets: Targets | None, reduction: Reduction
    ) -> dict[str, torch.Tensor]:
        """Compute in float32 whatever autocast is on.

        Args:
            logits: (n, C), the student's, any float dtype.
            labels: of the same n rows.
            targets: of the same n rows.
            reduction: see Reduction.

        Returns:
            float32 scalars: `loss` to minimise, and its parts by name, unweighted.

        Raises:
            TargetsError: targets are missing or lack what the objective needs.
        """
        ...


def require_targets(name: str, needs: Needs, targets: Targets | None) -> Targets:
    """The targets, or TargetsError if they can't serve `needs`."""
    if targets is None:
        raise TargetsError("this objective needs a teacher's targets", where=name, do="Pass --cache")
    if needs.dense and not targets.dense:
        raise TargetsError(
            "this objective needs every class and the targets are the top k",
            where=name,
            do="Cache dense targets: kdpipe cache-teacher --targets dense, or use temperature 1",
        )
    return targets
