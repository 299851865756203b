"""One evaluator for teachers and students: accuracy, calibration, and agreement with a cached teacher."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import distributed

from kdpipe.cache.tools.view_statistics import BINS
from kdpipe.errors import TrainingError
from kdpipe.loader import Batch
from kdpipe.targets import Targets, kl

Metrics = dict[str, float | int | None]
_COUNTS = ("samples", "labelled", "top1", "top5", "nll", "cached", "agreement_top1", "agreement_top5", "kl")


@dataclass
class Sums:
    """Sums over samples; they add up over batches and ranks, so neither changes the metrics.

    Attributes:
        totals: float64, one entry for each of _COUNTS.
        bins: float64 (BINS, 3): labelled samples, correct ones and summed confidence by confidence bin.
        broken: samples whose logits are not all finite.
    """

    device: torch.device
    totals: torch.Tensor = field(init=False)
    bins: torch.Tensor = field(init=False)
    broken: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.totals = torch.zeros(len(_COUNTS), dtype=torch.float64, device=self.device)
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64, device=self.device)
        self.broken = torch.zeros((), dtype=torch.float64, device=self.device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> None:
        """Count a batch.

        Args:
            logits: (n, C), any float dtype.
            labels: int64 (n,), -1 where there is none.
            teacher: float32 (n, C), its log-probabilities of the same views, or None.
        """
        logits = logits.double()
        log_p = torch.log_softmax(logits, dim=1)
        self.broken += (~torch.isfinite(logits).all(dim=1)).sum()
        known = labels >= 0
        rank = _rank(logits, labels.clamp(min=0))
        nll = -log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        found = {
            "samples": torch.ones_like(nll),
            "labelled": known,
            "top1": known & (rank < 1),
            "top5": known & (rank < 5),
            "nll": torch.where(known, nll, 0),
        }
        if teacher is not None:
            rank_of_teachers = _rank(logits, teacher.argmax(dim=1))
            found |= {
                "cached": torch.ones_like(nll),
                "agreement_top1": rank_of_teachers < 1,
                "agreement_top5": rank_of_teachers < 5,
                "kl": kl(teacher, logits),
            }
        for i, name in enumerate(_COUNTS):
            if name in found:
                self.totals[i] += found[name].double().sum()
        confidence = log_p.max(dim=1).values.exp()[known]
        edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=logits.device)[1:-1]
        # bin i is (i / BINS, (i + 1) / BINS]
        bins = torch.bucketize(confidence, edges)
        columns = torch.stack([torch.ones_like(confidence), (rank[known] < 1).double(), confidence], dim=1)
        self.bins.index_add_(0, bins, columns)

    def reduce(self) -> None:
        """Add up over the ranks of a distributed run, if this is one."""
        if distributed.is_available() and distributed.is_initialized():
            for tensor in (self.totals, self.bins, self.broken):
                distributed.all_reduce(tensor)

    def metrics(self) -> Metrics:
        """Means for people; see `evaluate`."""
        total = dict(zip(_COUNTS, self.totals.tolist(), strict=True))
        labelled, cached = total["labelled"], total["cached"]
        gap = (self.bins[:, 1] - self.bins[:, 2]).abs().sum().item()
        metrics: Metrics = {"samples": int(total["samples"]), "labelled": int(labelled)}
        for name in ("top1", "top5", "nll"):
            metrics[name] = total[name] / labelled if labelled else None
        metrics["ece"] = gap / labelled if labelled else None
        if cached:
            metrics |= {name: total[name] / cached for name in ("agreement_top1", "agreement_top5", "kl")}
        return metrics


@torch.inference_mode()
def evaluate(
    model: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    *,
    cached: Callable[[dict[str, torch.Tensor]], Targets] | None = None,
    views: int = 1,
) -> Metrics:
    """Score a model; over all ranks where the run is distributed, each bringing its own batches.

    Args:
        model: uint8 (n, S, S, 3) on `device` -> logits (n, C).
        batches: normally an epoch of a Loader that evaluates.
        num_classes: C.
        device: where to compute.
        cached: decodes the batches' targets, to compare with the teacher; None not to.
        views: of every sample, one after another in the batches; probabilities are averaged over them.

    Returns:
        samples, labelled: counts. The next four are over labelled samples, None if there are none.
        top1, top5: share whose label is first, or among the first five, by logit; ties go to the lower class.
        nll: mean -log p(label), nats.
        ece: expected calibration error, 15 bins of equal width in confidence (Guo et al. 2017, equation 3).
        With `cached`, over all samples:
        agreement_top1: share where the teacher's first class is the model's first.
        agreement_top5: share where the teacher's first class is among the model's first five.
        kl: mean KL(teacher || model), nats.

    Raises:
        TrainingError: the model's logits are not finite, or not (n, C).
    """
    sums = Sums(device)
    for batch in batches:
        if not len(batch):
            continue
        moved = batch.to(device, non_blocking=True)
        teacher = None
        if cached is not None:
            log_probs = cached(moved.targets).log_probs
            assert log_probs is not None
            teacher = averaged(log_probs, views)
        logits = model(moved.images)
        if logits.shape != (len(batch), num_classes):
            raise TrainingError(
                "the model's output is no logits",
                found=tuple(logits.shape),
                allowed=(len(batch), num_classes),
            )
        sums.add(logits if views == 1 else averaged(logits, views), moved.labels[::views], teacher)
    sums.reduce()
    if sums.broken.item():
        raise TrainingError(
            "the model's logits are NaN or infinite",
            found=f"{int(sums.broken.item())} of {int(sums.totals[0].item())} samples",
            do="Evaluate with --amp-dtype float32, or take weights from before training diverged",
        )
    return sums.metrics()


def averaged(logits: torch.Tensor, views: int) -> torch.Tensor:
    """Logits or log-probabilities (n * views, C), a sample's views together -> logs of mean probabilities (n, C)."""
    if views == 1:
        return logits
    log_p = torch.log_softmax(logits.double(), dim=1).reshape(-1, views, logits.shape[1])
    return torch.logsumexp(log_p, dim=1) - math.log(views)


def _rank(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Classes that come before `classes` int64 (n,) by logit (n, C), ties by class number: int64 (n,)."""
    own = logits.gather(1, classes[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
