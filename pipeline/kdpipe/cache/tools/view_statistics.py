"""Outputs on one view, row by row and as sums: accuracy, retained mass, entropy, confidence, calibration."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdpipe.targets import Encoding
from kdpipe.views import View

# Of every histogram, and of the calibration error.
BINS = 15
_EDGES = np.linspace(0, 1, BINS + 1)[1:-1]


@dataclass(frozen=True)
class ViewStatistics:
    """What reading n rows of one view gives back: the distribution of `Encoding.decode`, in float64.

    It is computed from the kept classes alone, in NumPy: a block's rows are too few to share among threads.

    Attributes:
        first: int64 (n, m), the likeliest classes in order; m is 5 or, where fewer are kept, k.
        mass: float64 (n, len(sizes)), probability of the first classes, as many as in `sizes`.
        entropy: float64 (n,), nats.
        index: int64 (n, k), the kept classes; None where all are.
        p: float64 (n, k) of the kept classes, or (n, C) of all.
        share: float64 (n,), probability of each class that is not kept.
    """

    first: np.ndarray
    mass: np.ndarray
    entropy: np.ndarray
    index: np.ndarray | None
    p: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, encoding: Encoding, fields: dict[str, np.ndarray]) -> "ViewStatistics":
        """From the arrays' rows."""
        last, most = np.array(sizes(encoding)) - 1, min(5, encoding.k)
        if encoding.kind == "dense":
            logits = fields["logits"].astype(np.float32)
            first = np.argsort(-logits, axis=1, kind="stable")[:, :most]  # of equal ones the lowest class first
            log_p = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
            p = np.exp(log_p)
            total = p.sum(axis=1, keepdims=True)
            p /= total
            log_p -= np.log(total)
            mass = np.sort(p, axis=1)[:, ::-1].cumsum(axis=1)[:, last]
            return cls(first, mass, -(p * log_p).sum(axis=1), None, p, np.zeros(len(p)))
        log_p, index = fields["log_prob"].astype(np.float64), fields["index"].astype(np.int64)
        p, others = np.exp(log_p), encoding.num_classes - encoding.k
        rest = np.maximum(1 - p.sum(axis=1), 0) if others else np.zeros(len(p))
        share = rest / max(1, others)
        entropy = -(p * log_p).sum(axis=1) - rest * np.log(np.where(share > 0, share, 1))
        return cls(index[:, :most], p.cumsum(axis=1)[:, last], entropy, index, p, share)

    def add_to(self, total: np.ndarray, weight: np.ndarray) -> None:
        """Add each row's distribution times `weight` float64 (n,) to `total` float64 (n, C)."""
        if self.index is None:
            total += self.p * weight[:, None]
            return
        total += (self.share * weight)[:, None]
        rows = np.arange(len(total))[:, None]
        total[rows, self.index] += (self.p - self.share[:, None]) * weight[:, None]


def sizes(encoding: Encoding) -> list[int]:
    """The numbers of classes whose retained mass is given: powers of two below k, and k."""
    return [*(2**i for i in range(encoding.k.bit_length()) if 2**i < encoding.k), encoding.k]


@dataclass
class ViewSums:
    """Sums over rows of one view of one segment.

    Attributes:
        views, labelled, mixed, top1, top5: counts; top5 means nothing where fewer than 5 of more classes are kept.
        mass: float64, one entry for each of `sizes`.
        total_entropy: nats.
        confidence, entropy: int64 (BINS,), rows by the first class's probability from 0 to 1, and by entropy
            from 0 to log(classes).
        calibration: float64 (BINS, 3): labelled rows, right ones and summed confidence by confidence.
    """

    segment: str
    view: View
    encoding: Encoding
    views: int = 0
    labelled: int = 0
    mixed: int = 0
    top1: int = 0
    top5: int = 0
    mass: np.ndarray = field(init=False)
    total_entropy: float = 0.0
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    entropy: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    calibration: np.ndarray = field(default_factory=lambda: np.zeros((BINS, 3)))

    def __post_init__(self) -> None:
        self.mass = np.zeros(len(sizes(self.encoding)))

    def add(self, outputs: ViewStatistics, labels: np.ndarray | None = None, mixed: np.ndarray | None = None) -> None:
        """Count n rows; labels int64 (n,) with -1 for none, mixed bool (n,)."""
        confidence = outputs.mass[:, 0]
        # bin i is (i / BINS, (i + 1) / BINS], as in kdpipe.evaluation
        bins = np.searchsorted(_EDGES, confidence)
        spread = outputs.entropy / math.log(max(2, self.encoding.num_classes))
        self.views += len(bins)
        self.mass += outputs.mass.sum(axis=0)
        self.total_entropy += float(outputs.entropy.sum())
        self.confidence += np.bincount(bins, minlength=BINS)
        self.entropy += np.bincount(np.searchsorted(_EDGES, spread), minlength=BINS)
        if labels is None or mixed is None:
            return
        known = labels >= 0
        ranked = outputs.first == labels[:, None]
        self.labelled += int(known.sum())
        self.mixed += int(mixed.sum())
        self.top1 += int(ranked[:, 0].sum())
        self.top5 += int(ranked.any(axis=1).sum())
        for column, weight in enumerate((known, ranked[:, 0], known * confidence)):
            self.calibration[:, column] += np.bincount(bins, weight, minlength=BINS)

    def summary(self) -> dict[str, Any]:
        """As JSON: counts, means over all views or over the labelled ones, and the histograms' counts.

        `ece` is the expected calibration error as in `kdpipe.evaluation.evaluate`; `entropy_limit` is where the
        histogram of entropies ends, nats.
        """
        views, labelled = max(1, self.views), max(1, self.labelled)
        ranks = self.encoding.k >= min(5, self.encoding.num_classes)
        return {
            "segment": self.segment,
            "view": self.view,
            "views": self.views,
            "labelled": self.labelled,
            "mixed": self.mixed,
            "teacher_top1": self.top1 / labelled if self.labelled else None,
            "teacher_top5": self.top5 / labelled if self.labelled and ranks else None,
            "ece": calibration_error(self.calibration) if self.labelled else None,
            "mean_confidence": float(self.mass[0]) / views,
            "mean_entropy": self.total_entropy / views,
            "retained_mass": dict(
                zip(map(str, sizes(self.encoding)), (self.mass / views).tolist(), strict=True),
            ),
            "confidence": self.confidence.tolist(),
            "entropy": self.entropy.tolist(),
            "entropy_limit": math.log(self.encoding.num_classes),
            "calibration": self.calibration.tolist(),
        }


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017) of a `ViewSums.calibration` or a sum of them."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(1.0, bins[:, 0].sum()))
