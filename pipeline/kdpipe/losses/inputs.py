"""Inputs of losses: the batch and run, the student's output, and what adapters must know of student and teacher."""

from dataclasses import dataclass, field

import torch
from torch import nn

from kdpipe.teacher import Tail


@dataclass(frozen=True)
class Context:
    """What a batch is part of: the whole batch over all processes, and the run.

    A rank divides the sum over its rows by the global count and multiplies by `world`, because data-parallel
    training averages gradients over ranks. The result depends neither on how many ranks there are nor on how
    the rows are dealt to them.

    Attributes:
        rows: of the batch over all ranks.
        labelled: those with a label.
        world: number of ranks.
        epoch: progress of the run in epochs, fractions included.
        epochs: of the run.
    """

    rows: int
    labelled: int
    world: int = 1
    epoch: float = 0.0
    epochs: float = 1.0

    @property
    def progress(self) -> float:
        """Share of the run that is done."""
        return self.epoch / max(self.epochs, 1e-9)

    def over_rows(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over all rows, from this rank's sum."""
        return total * (self.world / max(1, self.rows))

    def over_labelled(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over labelled rows, from this rank's sum; 0 where the batch has none."""
        return total * (self.world / max(1, self.labelled))


@dataclass(frozen=True)
class StudentOutput:
    """A student's output on n views.

    Attributes:
        logits: (n, C), any float dtype.
        pooled: (n, d), the input of its classifier; None unless `Requirements.student_pooled`.
        maps: (n, c, h, w) each, as many as `Requirements.maps`, the last one its final map.
    """

    logits: torch.Tensor
    pooled: torch.Tensor | None = None
    maps: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class FeatureShapes:
    """What adapters must know of a student before they are made: the sizes of its output.

    Attributes:
        num_classes: C.
        pooled: d; 0 unless `Requirements.student_pooled`.
        maps: (c, h, w) of each map, as in `StudentOutput`.
    """

    num_classes: int
    pooled: int = 0
    maps: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class TeacherInfo:
    """What adapters must know of a teacher: sizes of its features, its statistics and its parts.

    Attributes:
        num_classes: C.
        pooled: D; 0 where it isn't cached.
        map: (D, h, w); None where it isn't cached.
        mean, std: float32 (D,), of the map's channels over the first cached views.
        head: its classifier, frozen, float32.
        tail: its last stage, frozen.
    """

    num_classes: int
    pooled: int = 0
    map: tuple[int, int, int] | None = None
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    head: nn.Linear | None = field(default=None, compare=False)
    tail: Tail | None = field(default=None, compare=False)
