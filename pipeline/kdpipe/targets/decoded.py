"""Targets and labels as losses take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kdpipe.teacher import TeacherOutput


@dataclass(frozen=True)
class Targets:
    """Targets of N views, ready for a loss; None for what was not read.

    Attributes:
        log_probs: float32 (N, C), natural logarithm; of top-k targets with the tail spread evenly.
        label_log_prob: float32 (N,), the teacher's log-probability of the label; NaN where unlabelled; None
            where all logits are known.
        dense: whether every class's value is the teacher's own, rather than an even share of the tail.
        index: int64 (N, k), the classes that were kept; None where dense.
        pooled: float32 (N, D), what the teacher's classifier sees.
        map: float32 (N, D, h, w), the teacher's final map: before its last norm in ConvNets of ConvNeXt's kind,
            behind it in Swin.
    """

    log_probs: torch.Tensor | None = None
    label_log_prob: torch.Tensor | None = None
    dense: bool = False
    index: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    map: torch.Tensor | None = None

    @classmethod
    def live(cls, output: TeacherOutput) -> Targets:
        """Of the teacher's outputs themselves, nothing lost."""
        # Copies, because autograd doesn't take what was computed in inference mode.
        pooled, final = (None if x is None else x.clone() for x in (output.pooled, output.map))
        return cls(output.logits.log_softmax(dim=1), dense=True, pooled=pooled, map=final)


@dataclass(frozen=True)
class Labels:
    """The ground truth of n views.

    Attributes:
        hard: int64 (n,), -1 where there is none; of a mixed view the label with the larger share.
        pairs: int64 (n, 2), of a mixed view its own label and its partner's; None where nothing is mixed.
        lam: float32 (n,), the share of the first of them.
    """

    hard: torch.Tensor
    pairs: torch.Tensor | None = None
    lam: torch.Tensor | None = None


def mix_targets(own: Targets, other: Targets, lam: torch.Tensor, labels: torch.Tensor) -> Targets:
    """Mix the targets of two unmixed views, for students that see the mixed view (as in FKD, Shen and Xing 2022).

    Log-probabilities only: the features of a mixed image are no mixture of features.

    Args:
        own, other: of the same n rows and of their partners.
        lam: float (n,), the share of `own`.
        labels: int64 (n,), -1 where there is none.
    """
    assert own.log_probs is not None
    assert other.log_probs is not None
    share = lam[:, None].float()
    # log(0) is -inf, which leaves the other summand as it is
    log_probs = (own.log_probs + share.log()).logaddexp(other.log_probs + (1 - share).log())
    at_label = log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    known = at_label.masked_fill(labels < 0, float("nan"))
    # Without an index: two top-k sets have no tail in common.
    return Targets(log_probs, known, own.dense and other.dense)
