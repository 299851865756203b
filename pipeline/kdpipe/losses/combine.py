"""Several losses as one, and several teachers as one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdpipe.errors import TargetsError
from kdpipe.losses.base import Loss, TermConfig
from kdpipe.losses.inputs import Context, Requirements, StudentOutput
from kdpipe.targets import Labels, Targets

Parts = dict[str, torch.Tensor]


class Sum(Loss):
    """Weighted losses of one teacher. Parts: the terms' own, by their names; `<loss>.<part>` where two
    have the same; unweighted.
    """

    name, paper = "sum", "a weighted sum"
    Config = TermConfig

    def __init__(self, terms: Sequence[Loss]) -> None:
        nn.Module.__init__(self)
        self.terms = nn.ModuleList(terms)
        self.requirements = all_requirements(term.requirements for term in terms)

    def forward(self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context) -> Parts:
        """See Loss."""
        total: torch.Tensor | None = None
        parts: Parts = {}
        for term in self.terms:
            assert isinstance(term, Loss)
            own = term(output, labels, targets, context)
            loss = term.config.factor(context) * own.pop("loss")
            total = loss if total is None else total + loss
            for name, part in own.items():
                parts[f"{term.name}.{name}" if name in parts else name] = part
        assert total is not None
        return {"loss": total, **parts}


class SumOverTeachers(Loss):
    """One loss for each teacher, the weighted mean of their losses. Parts: the weighted means of theirs."""

    name, paper = "teachers", "a weighted mean over teachers"
    Config = TermConfig

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
    """The weighted mean of several teachers' log-probabilities, made to sum to 1: what an ensemble says.

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


def all_requirements(needs: Any) -> Requirements:
    """What all of them take together."""
    total = Requirements()
    for one in needs:
        total = total | one
    return total
