"""What losses are given, and say that they need: words that students, teachers and trainer share."""

from dataclasses import dataclass, field

import torch
from torch import nn

from kdpipe.teacher import Tail


@dataclass(frozen=True)
class Requirements:
    """What a loss takes.

    Attributes:
        labels: it has a term against the ground truth.
        logits: the teacher's, be they the top k.
        dense: each class's own logit rather than the top k.
        pooled, map: the teacher's features.
        head, tail: the teacher's classifier and its last stage, with their weights.
        maps: how many of the student's maps, from the last one backwards.
        student_pooled: what the student's classifier sees.
    """

    labels: bool = False
    logits: bool = False
    dense: bool = False
    pooled: bool = False
    map: bool = False
    head: bool = False
    tail: bool = False
    maps: int = 0
    student_pooled: bool = False

    @property
    def targets(self) -> bool:
        """Whether it can't do without a teacher."""
        return any((self.logits, self.dense, self.pooled, self.map, self.head, self.tail))

    @property
    def features(self) -> bool:
        """Whether it takes more than logits from the teacher."""
        return any((self.pooled, self.map, self.head, self.tail))

    def __or__(self, other: "Requirements") -> "Requirements":
        """What both take."""
        mine, theirs = vars(self), vars(other)
        return Requirements(**{name: max(value, theirs[name]) for name, value in mine.items()})


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
        epoch: how far the run is, in epochs, fractions included.
        epochs: of the run.
    """

    rows: int
    labelled: int
    world: int = 1
    epoch: float = 0.0
    epochs: float = 1.0

    def over_rows(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over all rows, from this rank's sum."""
        return total * (self.world / max(1, self.rows))

    def over_labelled(self, total: torch.Tensor) -> torch.Tensor:
        """Mean over labelled rows, from this rank's sum; 0 where the batch has none."""
        return total * (self.world / max(1, self.labelled))


@dataclass(frozen=True)
class StudentOutput:
    """What a student says of n views.

    Attributes:
        logits: (n, C), any float dtype.
        pooled: (n, d), what its classifier sees; None unless asked for.
        maps: (n, c, h, w) each, as many as asked for, the last one its final map.
    """

    logits: torch.Tensor
    pooled: torch.Tensor | None = None
    maps: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class FeatureShapes:
    """What adapters must know of a student before they are made: the sizes of its output.

    Attributes:
        num_classes: C.
        pooled: d; 0 unless asked for.
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
        pooled: D; 0 where not kept.
        map: (D, h, w); None where not kept.
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
