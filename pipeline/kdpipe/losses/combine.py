"""The loss that a config names: one, a sum of several, or one for each of several teachers."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import nn

from kdpipe.errors import ConfigError, TargetsError
from kdpipe.losses.base import Loss, Parts
from kdpipe.losses.inputs import Context, FeatureShapes, StudentOutput, TeacherInfo
from kdpipe.losses.registry import LossConfig
from kdpipe.targets import Labels, Targets


def build_loss(config: LossConfig, student: FeatureShapes | None = None, teachers: Sequence[TeacherInfo] = ()) -> Loss:
    """The loss that a config names.

    Args:
        config: which.
        student: the sizes of its output; only for losses with adapters.
        teachers: what is known of the teacher, or of each of several where `config.teachers` is sum.

    Raises:
        ConfigError: the loss can't sum over teachers.
        TrainingError, TargetsError: student and teacher don't go together in a loss.
    """
    if config.teachers == "sum" and len(teachers) > 1:
        wrapping = [loss.name for loss in config.losses if loss.Config.wraps_student]
        if wrapping:
            what = f"{wrapping[0]} changes the student for one teacher: it can't sum over several"
            raise ConfigError(what, where="loss.teachers", found="sum", allowed="average")
        return SumOverTeachers([_of_one(config, student, one) for one in teachers], config.teacher_weights)
    return _of_one(config, student, teachers[0] if teachers else None)


class Sum(Loss):
    """Weighted losses of one teacher. Parts: the terms' own, by their names; `<loss>.<part>` where two
    have the same; unweighted.
    """

    name = "sum"

    def __init__(self, terms: Sequence[Loss]) -> None:
        nn.Module.__init__(self)
        self.terms = nn.ModuleList(terms)
        self.requirements = reduce(or_, (term.requirements for term in terms))

    def forward(self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context) -> Parts:
        """See Loss."""
        total: torch.Tensor | None = None
        parts: Parts = {}
        for term in self.terms:
            assert isinstance(term, Loss)
            own = term(output, labels, targets, context)
            loss = term.config.factor(context.progress) * own.pop("loss")
            total = loss if total is None else total + loss
            for name, part in own.items():
                parts[f"{term.name}.{name}" if name in parts else name] = part
        assert total is not None
        return {"loss": total, **parts}


class SumOverTeachers(Loss):
    """One loss for each teacher, the weighted mean of their losses. Parts: the weighted means of theirs."""

    name = "teachers"

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float]) -> None:
        nn.Module.__init__(self)
        self.losses = nn.ModuleList(losses)
        self.requirements = losses[0].requirements
        self._weights = shares(weights, len(losses))

    def forward(self, output: StudentOutput, labels: Labels, targets: Any, context: Context) -> Parts:
        """See Loss; `targets` are a tuple, one of each teacher."""
        total: Parts = {}
        for weight, loss, own in zip(self._weights, self.losses, targets, strict=True):
            for name, part in loss(output, labels, own, context).items():
                total[name] = total.get(name, 0) + weight * part
        return total


def average(targets: Sequence[Targets], weights: Sequence[float] = ()) -> Targets:
    """The weighted mean of several teachers' log-probabilities, made to sum to 1: an ensemble's prediction.

    Args:
        targets: of the same n views, log-probabilities each.
        weights: of the teachers; equal by default.

    Raises:
        TargetsError: there is more than log-probabilities, which has no mean.
    """
    parts = shares(weights, len(targets))
    total: torch.Tensor | None = None
    for weight, one in zip(parts, targets, strict=True):
        if one.log_probs is None or one.pooled is not None or one.map is not None:
            raise TargetsError(
                "features of several teachers have no mean",
                do="Sum over the teachers instead: --set loss.teachers=sum",
            )
        total = weight * one.log_probs if total is None else total + weight * one.log_probs
    assert total is not None
    log_probs = torch.log_softmax(total, dim=1)
    dense = all(one.dense for one in targets)
    at_labels = [one.label_log_prob for one in targets if one.label_log_prob is not None]
    if len(at_labels) < len(targets):
        return Targets(log_probs, None, dense)
    # The mean's normaliser is the same for every class.
    shift = (log_probs - total)[:, 0]
    at_label = torch.stack([weight * at for weight, at in zip(parts, at_labels, strict=True)]).sum(dim=0)
    return Targets(log_probs, at_label + shift, dense)


def shares(weights: Sequence[float], count: int) -> list[float]:
    """Weights that sum to 1; equal ones where none are given."""
    given = list(weights) or [1.0] * count
    assert len(given) == count, f"{len(given)} weights for {count}"
    return [weight / math.fsum(given) for weight in given]


def _of_one(config: LossConfig, student: FeatureShapes | None, teacher: TeacherInfo | None) -> Loss:
    student = student or FeatureShapes(teacher.num_classes if teacher else 0)
    terms = [one.load()(config.hyperparameters(one.name), student, teacher) for one in config.losses]
    plain = all(term.config.weight == 1 and term.config.schedule == ((0.0, 1.0),) for term in terms)
    return terms[0] if len(terms) == 1 and plain else Sum(terms)
