"""NKD: the target class and the normalised others, each by itself."""

import torch

from kdpipe.losses.base import Loss, Parts, float32
from kdpipe.losses.config import NkdConfig
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.logit import cross_entropy
from kdpipe.losses.target_class import labelled, log_softmax_others, with_label
from kdpipe.targets import Labels, Targets


def nkd_target(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-p_t(y) log p_s(y) of each row, at temperature 1 whatever the others' is: (n,); 0 without a label.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels" (2023), the distributed part of the target loss.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C).
        labels: int64 (n,), y; -1 where there is none.
    """
    label = labels.clamp(min=0)[:, None]
    log_s = torch.log_softmax(float32(student), dim=1).gather(1, label)[:, 0]  # (n,)
    p_t = torch.log_softmax(float32(teacher), dim=1).gather(1, label)[:, 0].exp()
    return labelled(-p_t * log_s, labels)


def nkd_others(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """-T^2 sum_{c != y} T^_c log S^_c of each row: (n,); 0 without a label.

    Yang et al. (2023), the normalised loss of the non-target classes: T^ and S^ are softmaxes over the C - 1
    logits other than y's, divided by T.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C).
        labels: int64 (n,), y; -1 where there is none.
        temperature: T.
    """
    log_s = log_softmax_others(student, labels, temperature)  # (n, C)
    p_t = log_softmax_others(teacher, labels, temperature).exp()
    return labelled(-(p_t * log_s).sum(dim=1) * temperature**2, labels)


def nkd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`nkd_target` + gamma * `nkd_others` of each row, without the cross entropy against labels: (n,)."""
    return nkd_target(student, teacher, labels) + gamma * nkd_others(student, teacher, labels, temperature)


class Nkd(Loss):
    """CE + `nkd_target` + gamma * `nkd_others`, all of them means over the labelled rows.

    Of a mixed view y is the label with the larger share, and CE takes both. The label's probability is the
    teacher's own even where it is outside the top k, see `with_label`. Above or below temperature 1 the tail of
    a top-k set matters too much: it takes dense targets. Parts: `nkd_target`, `nkd_others`, and `ce`.
    """

    name, Config = "nkd", NkdConfig
    config: NkdConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c, student, hard = self.config, output.logits, labels.hard
        teacher = with_label(targets, hard)
        target = context.over_labelled(nkd_target(student, teacher, hard).sum())
        others = context.over_labelled(nkd_others(student, teacher, hard, c.temperature).sum())
        loss, parts = target + c.gamma * others, {"nkd_target": target, "nkd_others": others}
        if not c.ce:
            return {"loss": loss, **parts}
        ce = cross_entropy(student, labels, context, c.label_smoothing)
        return {"loss": loss + ce, **parts, "ce": ce}
