"""Losses on logits: plain cross entropy, knowledge distillation, soft cross entropy."""

import torch
from torch.nn import functional as F

from pipeline.objectives.base import Needs, Reduction, require_targets
from pipeline.targets import Labels, Targets


class CrossEntropy:
    """-log p_s(y) over the labelled rows: training without a teacher. Parts: `ce`.

    Of a mixed view the shares of both labels' losses, which is timm's SoftTargetCrossEntropy against mixup_target.

    Args:
        label_smoothing: share of the target spread evenly over all classes (torch's and timm's).
    """

    needs = Needs(labels=True, targets=False, dense=False)

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(
        self, logits: torch.Tensor, labels: Labels, targets: Targets | None, reduction: Reduction
    ) -> dict[str, torch.Tensor]:
        """See Objective."""
        with torch.autocast(logits.device.type, enabled=False):
            if labels.pairs is None or labels.lam is None:
                total = self._losses(logits, labels.hard).sum()
            else:
                known, lam = labels.hard >= 0, labels.lam
                own, other = (torch.where(known, labels.pairs[:, i], -1) for i in (0, 1))
                total = (lam * self._losses(logits, own) + (1 - lam) * self._losses(logits, other)).sum()
            ce = reduction.over_labelled(total)
        return {"loss": ce, "ce": ce}

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # (n, C), (n,) -> (n,); rows with label -1 give 0 and no gradient
        return F.cross_entropy(
            logits.float(), labels, ignore_index=-1, label_smoothing=self.label_smoothing, reduction="none"
        )


class KnowledgeDistillation:
    """alpha * KD + (1 - alpha) * CE, with KD = T^2 * mean_n KL(softmax(t / T) || softmax(s / T)).

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), equation 1 and section 2.1; the same
    loss as timm's LogitDistillationTask with task_loss_weight = 1 - alpha. KD averages over all rows, CE over
    the labelled ones. Parts: `kd`, and `ce` where alpha < 1.

    Args:
        temperature: T. Above or below 1 the tail of a top-k set matters too much, so it needs dense targets.
        alpha: weight of KD against CE.
        label_smoothing: of CE.
    """

    def __init__(self, temperature: float = 1.0, alpha: float = 0.5, label_smoothing: float = 0.0) -> None:
        self.temperature, self.alpha = temperature, alpha
        self._cross_entropy = CrossEntropy(label_smoothing)
        self.needs = Needs(labels=alpha < 1, targets=True, dense=temperature != 1)

    def __call__(
        self, logits: torch.Tensor, labels: Labels, targets: Targets | None, reduction: Reduction
    ) -> dict[str, torch.Tensor]:
        """See Objective."""
        teacher = require_targets("kd", self.needs, targets).log_probs
        with torch.autocast(logits.device.type, enabled=False):
            log_s = torch.log_softmax(logits.float() / self.temperature, dim=1)  # (n, C)
            # softmax forgets a shift, so log-probabilities serve as the teacher's logits
            log_t = teacher if self.temperature == 1 else torch.log_softmax(teacher / self.temperature, dim=1)
            total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)  # (n, C) twice -> ()
            kd = reduction.over_rows(total) * self.temperature**2
        if not self.needs.labels:
            return {"loss": kd, "kd": kd}
        ce = self._cross_entropy(logits, labels, None, reduction)["ce"]
        return {"loss": self.alpha * kd + (1 - self.alpha) * ce, "kd": kd, "ce": ce}


class SoftCrossEntropy:
    """-sum_c p_t(c) log p_s(c) over all rows, without ground truth, at temperature 1. Parts: `ce`.

    Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (2022); TinyViT (2022).
    """

    needs = Needs(labels=False, targets=True, dense=False)

    def __call__(
        self, logits: torch.Tensor, labels: Labels, targets: Targets | None, reduction: Reduction
    ) -> dict[str, torch.Tensor]:
        """See Objective."""
        teacher = require_targets("soft-ce", self.needs, targets).log_probs
        with torch.autocast(logits.device.type, enabled=False):
            log_s = torch.log_softmax(logits.float(), dim=1)  # (n, C)
            ce = reduction.over_rows(-(teacher.exp() * log_s).sum())  # (n, C) -> ()
        return {"loss": ce, "ce": ce}
