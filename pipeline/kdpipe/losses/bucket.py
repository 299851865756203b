"""Bucket KD: the classes that were kept, and all others as one."""

from typing import Any

import torch
from pydantic import Field
from torch.nn import functional as F

from kdpipe.losses.base import Loss, float32, require_targets
from kdpipe.losses.inputs import Context, Requirements, StudentOutput
from kdpipe.losses.logit import CrossEntropyConfig, cross_entropy
from kdpipe.targets import Labels, Targets


def bucket_kd(student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) over k classes and a bucket with the sum of all others, of each row, nats: (n,).

    Exact for a top-k set whatever its tail looks like: only the tail's sum is known, and only that is taught.
    It is another loss than KD, and the same at temperature 1 where k = C.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C), of which only the values at `index` and the rest's sum count.
        index: int64 (n, k), the classes, each once.
    """
    log_s, log_t = (_buckets(logits, index) for logits in (student, teacher))  # (n, k + 1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


class BucketConfig(CrossEntropyConfig):
    """Numbers of `bucket-kd`."""

    k: int = Field(16, ge=1, description="classes to take of dense targets; of top-k targets those that are kept")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the KL; cross entropy gets 1 - alpha")


class BucketKd(Loss):
    """alpha * `bucket_kd` + (1 - alpha) * CE, at temperature 1.

    Of dense targets, a live teacher's among them, the k likeliest classes count as kept: with the cache's k the
    same loss. KL averages over all rows, CE over the labelled ones. Parts: `bucket`, and `ce` where alpha < 1.
    """

    name, paper = "bucket-kd", "KD with the classes beyond the top k as one; no paper"
    Config = BucketConfig
    config: BucketConfig

    @staticmethod
    def requirements_of(config: Any) -> Requirements:
        """See Loss."""
        return Requirements(labels=config.alpha < 1, logits=True)

    def forward(
        self, output: StudentOutput, labels: Labels, targets: Targets | None, context: Context
    ) -> dict[str, torch.Tensor]:
        """See Loss."""
        c, found = self.config, require_targets(self.name, self.requirements, targets)
        teacher, index = found.log_probs, found.index
        assert teacher is not None
        if index is None:
            index = teacher.topk(min(c.k, teacher.shape[1]), dim=1).indices
        with torch.autocast(output.logits.device.type, enabled=False):
            kl = context.over_rows(bucket_kd(output.logits, teacher, index).sum())
        if not self.requirements.labels:
            return {"loss": kl, "bucket": kl}
        ce = cross_entropy(output.logits, labels, context, c.label_smoothing)
        return {"loss": c.alpha * kl + (1 - c.alpha) * ce, "bucket": kl, "ce": ce}


def _buckets(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    # (n, C), (n, k) -> (n, k + 1) log-probabilities, the last one of all other classes; (n, C) where there is none
    log_p = torch.log_softmax(float32(logits), dim=1)
    kept = log_p.gather(1, index)
    if index.shape[1] == log_p.shape[1]:
        return kept
    mask = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, index, True)
    rest = log_p.masked_fill(mask, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([kept, rest], dim=1)
