"""DKD: the target class against all others, and the others among themselves, weighted apart."""

import torch
from torch.nn import functional as F

from kdpipe.losses.base import Loss, Parts, float32
from kdpipe.losses.config import DkdConfig
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.logit import cross_entropy
from kdpipe.losses.target_class import label_mask, labelled, log_softmax_others, with_label
from kdpipe.targets import Labels, Targets


def tckd(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL([p_y, 1 - p_y] of the teacher || of the student) of each row, nats: (n,); 0 without a label.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), target class; p is a softmax at temperature T.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C).
        labels: int64 (n,), y; -1 where there is none.
        temperature: T.
    """
    log_s, log_t = (_label_or_not(logits, labels, temperature) for logits in (student, teacher))  # (n, 2)
    losses = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1) * temperature**2
    return labelled(losses, labels)


def nckd(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL over the C - 1 classes that are not y, each side normalised, nats: (n,); 0 without a label.

    Zhao et al. (2022), non-target classes. Arguments as in `tckd`.
    """
    log_s, log_t = (log_softmax_others(logits, labels, temperature) for logits in (student, teacher))  # (n, C)
    losses = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1) * temperature**2
    return labelled(losses, labels)


def dkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """alpha * `tckd` + beta * `nckd` of each row, equation 7, without warm-up and cross entropy: (n,)."""
    return alpha * tckd(student, teacher, labels, temperature) + beta * nckd(student, teacher, labels, temperature)


def warmed(epoch: float, warmup: float) -> float:
    """min(epoch / warmup, 1), the factor of DKD's loss; 1 without a warm-up."""
    return min(epoch / warmup, 1.0) if warmup > 0 else 1.0


class Dkd(Loss):
    """CE + min(epoch / warmup, 1) * (alpha * `tckd` + beta * `nckd`), all of them means over the labelled rows.

    The epoch counts from 0 and in fractions, where the authors' code counts whole ones from 1: its warm-up of one
    epoch on ImageNet is none. Of a mixed view y is the label with the larger share, and CE takes both. The
    label's probability is the teacher's own even where it is outside the top k, see `with_label`. Above or below
    temperature 1 the tail of a top-k set matters too much: it takes dense targets. Parts: `tckd`, `nckd`, `ce`.
    """

    name, Config = "dkd", DkdConfig
    config: DkdConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c, student, hard = self.config, output.logits, labels.hard
        teacher = with_label(targets, hard)
        target = context.over_labelled(tckd(student, teacher, hard, c.temperature).sum())
        others = context.over_labelled(nckd(student, teacher, hard, c.temperature).sum())
        ce = cross_entropy(student, labels, context, c.label_smoothing)
        loss = ce + warmed(context.epoch, c.warmup) * (c.alpha * target + c.beta * others)
        return {"loss": loss, "tckd": target, "nckd": others, "ce": ce}


def _label_or_not(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    # log [p_y, 1 - p_y], (n, C) -> (n, 2), from the odds: 1 - p_y may round to 0
    scaled = float32(logits) / temperature
    others = scaled.masked_fill(label_mask(scaled, labels), -torch.inf).logsumexp(dim=1)
    odds = scaled.gather(1, labels.clamp(min=0)[:, None])[:, 0] - others  # (n,)
    return F.logsigmoid(torch.stack([odds, -odds], dim=1))
