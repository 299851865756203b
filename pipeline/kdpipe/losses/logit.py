"""Losses on logits: plain cross entropy, knowledge distillation, soft cross entropy."""

import torch
from torch.nn import functional as F

from kdpipe.losses.base import Loss, Parts, float32, given
from kdpipe.losses.config import CrossEntropyConfig, KdConfig, SoftCrossEntropyConfig
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.targets import Labels, Targets


def cross_entropy(logits: torch.Tensor, labels: Labels, context: Context, label_smoothing: float = 0.0) -> torch.Tensor:
    """-log p_s(y), the mean over the labelled rows of the whole batch: float32 ().

    Of a mixed view the shares of both labels' losses, which is timm's SoftTargetCrossEntropy against mixup_target.

    Args:
        logits: (n, C), any float dtype.
        labels: of the same rows; those without one give 0 and no gradient.
        context: see Context.
        label_smoothing: share of the target spread evenly over all classes (torch's and timm's).
    """

    def losses(hard: torch.Tensor) -> torch.Tensor:
        # (n, C), (n,) -> (n,)
        return F.cross_entropy(
            float32(logits), hard, ignore_index=-1, label_smoothing=label_smoothing, reduction="none"
        )

    with torch.autocast(logits.device.type, enabled=False):
        if labels.pairs is None or labels.lam is None:
            return context.over_labelled(losses(labels.hard).sum())
        known, lam = labels.hard >= 0, labels.lam
        own, other = (torch.where(known, labels.pairs[:, i], -1) for i in (0, 1))
        return context.over_labelled((lam * losses(own) + (1 - lam) * losses(other)).sum())


def kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) of each row, nats: (n,).

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), equation 1 and section 2.1.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C): softmax is invariant to a shift.
        temperature: T.
    """
    log_s = torch.log_softmax(float32(student) / temperature, dim=1)  # (n, C)
    log_t = torch.log_softmax(float32(teacher) / temperature, dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1) * temperature**2


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """-sum_c p_t(c) log p_s(c) of each row, nats: (n,).

    Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (2022); TinyViT (2022).

    Args:
        student: logits (n, C).
        teacher: log-probabilities (n, C).
    """
    return -(float32(teacher).exp() * torch.log_softmax(float32(student), dim=1)).sum(dim=1)


class CrossEntropy(Loss):
    """Training without a teacher, see `cross_entropy`. Parts: `ce`."""

    name, Config = "none", CrossEntropyConfig
    config: CrossEntropyConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        ce = cross_entropy(output.logits, labels, context, self.config.label_smoothing)
        return {"loss": ce, "ce": ce}


class KnowledgeDistillation(Loss):
    """alpha * KD + (1 - alpha) * CE, see `kd` and `cross_entropy`: timm's LogitDistillationTask.

    KD averages over all rows, CE over the labelled ones. At another temperature than 1 the tail of a top-k set
    matters too much: it takes dense targets. Parts: `kd`, and `ce` where alpha < 1.
    """

    name, Config = "kd", KdConfig
    config: KdConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c = self.config
        loss = context.over_rows(kd(output.logits, given(targets.log_probs), c.temperature).sum())
        if not self.requirements.labels:
            return {"loss": loss, "kd": loss}
        ce = cross_entropy(output.logits, labels, context, c.label_smoothing)
        return {"loss": c.alpha * loss + (1 - c.alpha) * ce, "kd": loss, "ce": ce}


class SoftCrossEntropy(Loss):
    """`soft_cross_entropy` over all rows, without ground truth, at temperature 1. Parts: `ce`."""

    name, Config = "soft-ce", SoftCrossEntropyConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        ce = context.over_rows(soft_cross_entropy(output.logits, given(targets.log_probs)).sum())
        return {"loss": ce, "ce": ce}
