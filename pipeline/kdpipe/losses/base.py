"""Base of every loss: requires the targets, runs adapters, computes the equation in float32, names the parts."""

from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from kdpipe.errors import TargetsError
from kdpipe.losses.config import Requirements, TermConfig
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.models import ModelSpec
from kdpipe.targets import FEATURE_FLAGS, Labels, Targets

T = TypeVar("T")
Parts = dict[str, torch.Tensor]


class Loss(nn.Module):
    """A loss over one batch, with the adapters that it trains, if it has any.

    A subclass sets `name` and `Config` and defines `compute`. One with adapters makes them in `__init__` and applies
    them in `adapt`.

    Args:
        config: of the class `Config`.
        student: sizes of the student's output; needed for adapters.
        teacher: sizes, statistics and parts of the teacher; needed for adapters.

    Raises:
        TrainingError, TargetsError: student, teacher and loss don't go together.
    """

    name: ClassVar[str]
    Config: ClassVar[type[TermConfig]]

    def __init__(self, config: Any, student: FeatureShapes | None = None, teacher: TeacherInfo | None = None) -> None:
        super().__init__()
        self.config = config
        self.requirements: Requirements = config.requirements

    @classmethod
    def wrap(cls, config: Any, model: nn.Module, teacher: TeacherInfo | None) -> nn.Module:
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
    def layers(cls, config: Any) -> tuple[str, ...]:
        """Names of the wrapped student's modules whose maps it takes; empty for `student_layers` or the default."""
        return ()

    def adapt(self, output: StudentOutput, targets: Targets) -> StudentOutput:
        """The student's output behind the adapters, which run in autocast's dtype."""
        return output

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """The equation, with autocast off. `float32` converts what autocast made; `context` averages sums of rows.

        Args:
            output: behind `adapt`, n rows; logits, pooled and maps may be bfloat16 or float16.
            labels: of the same n rows.
            targets: of the same n rows, float32; what `requirements` lists is there.
            context: see Context.

        Returns:
            float32 scalars: `loss` to minimise, and its parts by name, unweighted.
        """
        raise NotImplementedError

    def forward(self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context) -> Parts:
        """Compute in float32 whether autocast is on or off.

        Args:
            output: the student's, n rows.
            labels, targets, context: see `compute`; targets may be None where the loss needs no teacher.

        Returns:
            See `compute`.

        Raises:
            TargetsError: targets are missing or lack what the loss needs.
        """
        targets = self._required(targets)
        output = self.adapt(output, targets)
        with torch.autocast(output.logits.device.type, enabled=False):
            return self.compute(output, labels, targets, context)

    def _required(self, targets: Targets | None) -> Targets:
        requirements, name = self.requirements, self.name
        if not requirements.targets:
            return targets or Targets()
        if targets is None:
            raise TargetsError("this loss needs a teacher's targets", where=name, do="Pass --cache")
        if (requirements.logits or requirements.dense) and targets.log_probs is None:
            raise TargetsError(
                "this loss needs the teacher's logits and the targets have none",
                where=name,
                do="Cache them: kdpipe cache-teacher --targets topk, or dense",
            )
        if requirements.dense and not targets.dense:
            raise TargetsError(
                "this loss needs every class and the targets are the top k",
                where=name,
                do="Cache all: kdpipe cache-teacher --targets dense, or --pooled float16, which gives dense logits at "
                "any temperature through the teacher's head",
            )
        for feature in FEATURE_FLAGS:
            if getattr(requirements, feature) and getattr(targets, feature) is None:
                raise _missing(name, feature)
        return targets


def of_teacher(name: str, teacher: TeacherInfo | None, part: str) -> Any:
    """The teacher's `map` shape, `head` or `tail` for the adapters of the loss `name`.

    Raises:
        TargetsError: it isn't known.
    """
    found = None if teacher is None else getattr(teacher, part)
    if found is None:
        raise _missing(name, part)
    return found


def given(value: T | None) -> T:
    """A tensor that the requirements guarantee."""
    assert value is not None
    return value


def float32(x: torch.Tensor) -> torch.Tensor:
    """At least float32: a double stays one."""
    return x if x.dtype == torch.float64 else x.float()


def _missing(name: str, part: str) -> TargetsError:
    if part == "tail":
        do = "Keep it: kdpipe cache-teacher --last-stage; or use kd+cap-dfm, which does without"
        return TargetsError("this loss needs the teacher's last stage", where=name, do=do)
    # The classifier is kept beside the pooled feature.
    feature = "pooled" if part == "head" else part
    return TargetsError(
        f"this loss needs the teacher's {feature} feature",
        where=name,
        do=f"Cache it: kdpipe cache-teacher --targets none {FEATURE_FLAGS[feature]} float16",
    )
