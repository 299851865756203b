"""What every loss is: needs it declares, and a call that returns its loss and the loss's parts."""

from typing import Any, ClassVar, Self

import torch
from pydantic import Field, field_validator
from torch import nn

from kdpipe.config import Config
from kdpipe.errors import TargetsError
from kdpipe.losses.inputs import Context, FeatureShapes, Requirements, StudentOutput, TeacherInfo
from kdpipe.models import ModelSpec
from kdpipe.targets import FEATURE_FLAGS, Labels, Targets


class TermConfig(Config):
    """What every loss's config has, for when several are summed."""

    weight: float = Field(1.0, ge=0, description="of the loss where several are summed")
    schedule: tuple[tuple[float, float], ...] = Field(
        ((0.0, 1.0),), description="factors of the weight: [[0, 0.1], [0.05, 1]] is 0.1, and 1 from 5 % of the run on"
    )

    @field_validator("schedule")
    @classmethod
    def _from_the_start(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        starts = [start for start, _ in steps]
        if not steps or starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= 1:
            raise ValueError(f"a schedule begins at 0 and rises below 1, found {starts}")
        return steps

    def factor(self, context: Context) -> float:
        """Weight times the schedule's factor, now."""
        share = context.epoch / max(context.epochs, 1e-9)
        return self.weight * [factor for start, factor in self.schedule if start <= share + 1e-9][-1]


class Loss(nn.Module):
    """A loss over one batch, with the adapters that it trains, if it has any. A subclass has the first four.

    Attributes:
        name: as in `--loss`.
        paper: where it is from, one line.
        Config: its numbers.
        trains_classifier: it trains the student's classifier, so that it can stand alone.
        wraps_student: whether `wrap` does anything.
        needs: what it takes.
        config: its own.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[TermConfig]]
    trains_classifier: ClassVar[bool] = True
    wraps_student: ClassVar[bool] = False

    def __init__(self, config: TermConfig) -> None:
        super().__init__()
        self.config = config
        self.requirements = self.requirements_of(config)

    @classmethod
    def usable(cls) -> str:
        """Its name as it can be used by itself: beside the labels' cross entropy where the classifier needs it."""
        return cls.name if cls.trains_classifier else f"ce+{cls.name}"

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """What it takes with these numbers."""
        raise NotImplementedError

    @classmethod
    def make(cls, config: Any, student: FeatureShapes, info: TeacherInfo | None) -> Self:
        """With adapters of these sizes; without a teacher only where it needs none.

        Raises:
            TrainingError: student and teacher don't go together in it.
        """
        return cls(config)

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, info: TeacherInfo | None) -> nn.Module:
        """The student as it is trained and evaluated, where it needs more than its own layers.

        Raises:
            TrainingError: this student can't be wrapped like that.
        """
        return model

    @classmethod
    def unwrap(cls, built: ModelSpec) -> ModelSpec:
        """The student as it is kept, from `built` whose module is wrapped: the same function."""
        return built

    @classmethod
    def taps(cls, config: Any) -> tuple[str, ...]:
        """Names of the wrapped student's modules whose maps it takes; empty for the user's or the usual ones."""
        return ()

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """Compute in float32 whatever autocast is on.

        Args:
            output: the student's, n rows.
            labels: of the same n rows.
            targets: of the same n rows.
            context: see Context.

        Returns:
            float32 scalars: `loss` to minimise, and its parts by name, unweighted.

        Raises:
            TargetsError: targets are missing or lack what the loss needs.
        """
        raise NotImplementedError


def require_targets(name: str, needs: Requirements, targets: Targets | None) -> Targets:
    """The targets, or TargetsError if they can't serve `needs`."""
    if targets is None:
        raise TargetsError("this loss needs a teacher's targets", where=name, do="Pass --cache")
    if (needs.logits or needs.dense) and targets.log_probs is None:
        raise TargetsError(
            "this loss needs the teacher's logits and the targets have none",
            where=name,
            do="Cache them: kdpipe cache-teacher --targets topk, or dense",
        )
    if needs.dense and not targets.dense:
        raise TargetsError(
            "this loss needs every class and the targets are the top k",
            where=name,
            do="Cache all: kdpipe cache-teacher --targets dense, or --pooled float16, which gives dense logits at any "
            "temperature through the teacher's head",
        )
    missing = [n for n in ("pooled", "map") if getattr(needs, n) and getattr(targets, n) is None]
    if missing:
        raise TargetsError(
            f"this loss needs the teacher's {missing[0]} feature",
            where=name,
            do=f"Cache it: kdpipe cache-teacher --targets none {FEATURE_FLAGS[missing[0]]} float16",
        )
    return targets


def rows_mean(x: torch.Tensor, context: Context) -> torch.Tensor:
    """Mean over all elements of float (n, ...), each row counting once over the whole batch."""
    return context.over_rows(x.float().flatten(1).mean(dim=1).sum()) if len(x) else x.float().sum()


def float32(x: torch.Tensor) -> torch.Tensor:
    """At least float32: a double stays one."""
    return x if x.dtype == torch.float64 else x.float()
