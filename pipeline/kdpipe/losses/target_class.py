"""Functions of losses that treat the label's class apart from all others."""

import math

import torch

from kdpipe.losses.base import float32
from kdpipe.targets import Targets

# What is left for a tail is a difference of rounded numbers; below this it is rounding, not probability.
_LEAST_TAIL = 1e-12


def with_label(targets: Targets, labels: torch.Tensor) -> torch.Tensor:
    """The teacher's log-probabilities, the label's as it was kept even outside the top k: float32 (n, C).

    In `Targets.log_probs` a label outside the top k has an even share of the tail like any other class, yet its
    own probability p(y) was kept beside them. It gets that, and the other C - k - 1 classes of the tail share
    what is left, (1 - sum of the kept - p(y)) / (C - k - 1), so that each row still sums to 1. Rows whose label
    is among the k, rows without a label and dense targets stay as they are. Where several top-k sets went into
    one, it isn't known which classes are the tail: the label gets its own, and all others are scaled to the rest.

    Args:
        targets: n rows, with `log_probs`.
        labels: int64 (n,), the labels that the targets were cached with; -1 where there is none.
    """
    log_probs, index, own = targets.log_probs, targets.index, targets.label_log_prob
    assert log_probs is not None
    if targets.dense or own is None:
        return log_probs
    label, at_label = labels.clamp(min=0)[:, None], own[:, None]  # (n, 1)
    before = log_probs.gather(1, label)
    if index is None:
        wrong = (labels >= 0)[:, None]
        others = log_probs + (_log(1 - at_label.exp()) - _log(1 - before.exp()))  # (n, C)
    else:
        classes, kept = log_probs.shape[1], index.shape[1]
        tail = torch.ones_like(log_probs, dtype=torch.bool).scatter(1, index, False)  # (n, C)
        wrong = tail.gather(1, label) & (labels >= 0)[:, None]
        # There the label has had the share of each class of the tail. With C = k + 1 it is the tail, and no other
        # class gets a share.
        rest = _log(before.exp() * (classes - kept) - at_label.exp())
        others = torch.where(tail, rest - math.log(max(1, classes - kept - 1)), log_probs)
    return torch.where(wrong, others.scatter(1, label, at_label), log_probs)


def label_mask(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Where each row's label is: bool (n, C) of logits (n, C) and labels int64 (n,); -1 counts as class 0."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels.clamp(min=0)[:, None], True)


def log_softmax_others(logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-softmax over the C - 1 classes that are not the label: (n, C), 0 at the label.

    Args:
        logits: or log-probabilities, (n, C), C > 1.
        labels: int64 (n,).
        temperature: T, which logits are divided by.
    """
    mask = label_mask(logits, labels)
    others = torch.log_softmax((float32(logits) / temperature).masked_fill(mask, -torch.inf), dim=1)
    # Minus infinity times a probability of 0 would be NaN.
    return others.masked_fill(mask, 0)


def labelled(losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses of rows (n,), 0 and without gradient for those without a label."""
    return torch.where(labels >= 0, losses, 0)


def _log(rest: torch.Tensor) -> torch.Tensor:
    return rest.clamp(min=_LEAST_TAIL).log()
