"""Targets and labels as losses take them."""

from dataclasses import dataclass

import torch

from kdpipe.teacher import TeacherOutput


@dataclass(frozen=True)
class Targets:
    """Targets of N views, ready for a loss; None for what was not asked for.

    Attributes:
        log_probs: float32 (N, C), natural logarithm; of top-k targets with the tail spread evenly.
        label_log_prob: float32 (N,), the teacher's log-probability of the label; NaN where unlabelled; None
            where all logits are known.
        dense: whether every class's value is the teacher's own rather than a tail's share.
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
    def live(cls, output: TeacherOutput) -> "Targets":
        """What a teacher says now, nothing lost."""
        # Copies, because autograd doesn't take what was computed in inference mode.
        pooled, final = (None if x is None else x.clone() for x in (output.pooled, output.map))
        return cls(torch.log_softmax(output.logits, dim=1), dense=True, pooled=pooled, map=final)


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
    """Shares of two teachers' answers, as students mix them who were cached on unmixed views (FKD's way).

    Logits only: a feature of a mixed image is no mixture of features.

    Args:
        own, other: of the same n rows and of their partners.
        lam: float (n,), the share of `own`.
        labels: int64 (n,), -1 where there is none.
    """
    assert own.log_probs is not None
    assert other.log_probs is not None
    share = lam[:, None].float()
    # log(0) is -inf, which leaves the other summand as it is
    log_probs = torch.logaddexp(own.log_probs + share.log(), other.log_probs + (1 - share).log())
    at_label = log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    known = torch.where(labels >= 0, at_label, torch.nan)
    # Of two top-k sets no tail is known, which is what an index would say.
    return Targets(log_probs, known, own.dense and other.dense)
