"""Bucket KD: the classes that were kept, and all others as one."""

import torch
from torch.nn import functional as F

from kdpipe.losses.base import Loss, Parts, float32, given
from kdpipe.losses.config import BucketConfig
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.logit import cross_entropy
from kdpipe.targets import Labels, Targets


def bucket_kd(student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) over k classes and a bucket with the sum of all others, of each row, nats: (n,).

    Exact for a top-k set whatever its tail looks like: only the tail's sum is known, and only that is matched.
    It is another loss than KD, and the same at temperature 1 where k = C.

    Args:
        student: logits (n, C).
        teacher: logits or log-probabilities (n, C), of which only the values at `index` and the rest's sum count.
        index: int64 (n, k), the classes, each once.
    """
    log_s, log_t = (_buckets(logits, index) for logits in (student, teacher))  # (n, k + 1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=1)


class BucketKd(Loss):
    """alpha * `bucket_kd` + (1 - alpha) * CE, at temperature 1.

    Of dense targets, a live teacher's among them, the k likeliest classes count as kept: with the cache's k the
    same loss. KL averages over all rows, CE over the labelled ones. Parts: `bucket`, and `ce` where alpha < 1.
    """

    name, Config = "bucket-kd", BucketConfig
    config: BucketConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c, teacher, index = self.config, given(targets.log_probs), targets.index
        if index is None:
            index = teacher.topk(min(c.k, teacher.shape[1]), dim=1).indices
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
