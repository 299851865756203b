"""Targets: what is kept of a teacher's answer, and how it is read back.

Log-probabilities come from a float32 log-softmax and are quantised after it (raw fp16 logits lose a thousand
times as much). A top-k set is never renormalised: what it leaves out is spread evenly over the other classes,
which keeps a student's gradient within a few per cent of the full one where renormalising does not.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from pipeline.config import Config
from pipeline.teacher import TeacherOutput

# What is left for the tail is a difference of rounded numbers; below this it is rounding, not probability.
_LEAST_TAIL = 1e-12


class TargetsConfig(Config):
    """What a cache keeps of a view: `topk` log-probabilities, or `dense` logits."""

    kind: Literal["topk", "dense"] = "topk"
    k: int = Field(16, ge=1, description="classes kept by topk; all of them where there are fewer")
    dtype: Literal["float16", "float32"] = Field("float16", description="of log-probs or logits")


@dataclass(frozen=True)
class ArrayField:
    """One array of the cache: trailing shape and NumPy dtype of a view's entry."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of a view's entry, uncompressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Targets:
    """Targets of N views, ready for an objective.

    Attributes:
        log_probs: float32 (N, C), natural logarithm; of top-k targets with the tail spread evenly.
        label_log_prob: float32 (N,), the teacher's log-probability of the label; NaN where unlabelled; None
            where the cache keeps dense logits.
        dense: whether every class's value is the teacher's own rather than a tail's share.
    """

    log_probs: torch.Tensor
    label_log_prob: torch.Tensor | None
    dense: bool


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


@dataclass(frozen=True)
class Encoding:
    """How targets of `num_classes` classes lie in arrays. JSON-able, part of a segment's identity."""

    kind: Literal["topk", "dense"]
    k: int
    dtype: Literal["float16", "float32"]
    num_classes: int

    @classmethod
    def of(cls, config: TargetsConfig, num_classes: int) -> "Encoding":
        """The encoding that a config asks for; `k` is cut to the number of classes."""
        k = num_classes if config.kind == "dense" else min(config.k, num_classes)
        return cls(config.kind, k, config.dtype, num_classes)

    @property
    def name(self) -> str:
        """Short name used for segments: top16-float16, dense-float32."""
        return f"{'dense' if self.kind == 'dense' else f'top{self.k}'}-{self.dtype}"

    @property
    def nbytes(self) -> int:
        """Bytes of a view, uncompressed."""
        return sum(field.nbytes for field in self.fields())

    @property
    def dense(self) -> bool:
        """Whether all classes are there."""
        return self.k == self.num_classes

    def fields(self) -> tuple[ArrayField, ...]:
        """The arrays, in the order in which they are written."""
        if self.kind == "dense":
            return (ArrayField("logits", (self.num_classes,), self.dtype),)
        # The largest value is no class: it marks rows that were never written.
        index = "uint8" if self.num_classes < 2**8 else "uint16" if self.num_classes < 2**16 else "uint32"
        return (
            ArrayField("index", (self.k,), index),
            ArrayField("log_prob", (self.k,), self.dtype),
            ArrayField("label_log_prob", (), self.dtype),
        )

    def json(self) -> dict[str, Any]:
        """As stored in a segment."""
        return {"kind": self.kind, "k": self.k, "dtype": self.dtype, "num_classes": self.num_classes}

    def encode(self, output: TeacherOutput, labels: torch.Tensor) -> dict[str, np.ndarray]:
        """Teacher's answer on N views and their labels (int64, -1 = none) -> one array a field, N rows each."""
        if self.kind == "dense":
            return {"logits": output.logits.to(getattr(torch, self.dtype)).cpu().numpy()}
        log_probs = torch.log_softmax(output.logits.float(), dim=1)
        top, index = log_probs.topk(self.k, dim=1)
        at_label = log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        at_label = torch.where(labels >= 0, at_label, torch.nan)
        dtype = getattr(torch, self.dtype)
        return {
            "index": index.cpu().numpy().astype(self.fields()[0].dtype),
            "log_prob": top.to(dtype).cpu().numpy(),
            "label_log_prob": at_label.to(dtype).cpu().numpy(),
        }

    def decode(self, fields: dict[str, torch.Tensor]) -> Targets:
        """Rows as read from the arrays -> Targets, on the device where they are."""
        if self.kind == "dense":
            return Targets(torch.log_softmax(fields["logits"].float(), dim=1), None, True)
        top = fields["log_prob"].float()
        index = fields["index"].to(torch.int64)
        if self.dense:
            log_probs = torch.empty(len(top), self.num_classes, device=top.device)
        else:
            rest = (1 - top.exp().sum(dim=1, keepdim=True)).clamp(min=_LEAST_TAIL)
            log_probs = (rest.log() - math.log(self.num_classes - self.k)).repeat(1, self.num_classes)
        return Targets(log_probs.scatter(1, index, top), fields["label_log_prob"].float(), self.dense)


@dataclass
class Quality:
    """Sums over views of how good a teacher is and what its encoding loses; JSON-able, adds up."""

    views: int = 0
    labelled: int = 0
    top1: int = 0
    top5: int = 0
    retained_mass: float = 0.0
    kl: float = 0.0

    def add(self, other: "Quality") -> None:
        """Accumulate another part."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def means(self) -> dict[str, float | int | None]:
        """Averages for people: accuracies over the labelled views, the rest over all."""
        labelled, views = max(1, self.labelled), max(1, self.views)
        return {
            "views": self.views,
            "teacher_top1": self.top1 / labelled if self.labelled else None,
            "teacher_top5": self.top5 / labelled if self.labelled else None,
            "retained_mass": self.retained_mass / views,
            "encoding_loss": self.kl / views,
        }


def mix_targets(own: Targets, other: Targets, lam: torch.Tensor, labels: torch.Tensor) -> Targets:
    """Shares of two teachers' answers, as students mix them who were cached on unmixed views (FKD's way).

    Args:
        own, other: of the same n rows and of their partners.
        lam: float (n,), the share of `own`.
        labels: int64 (n,), -1 where there is none.
    """
    share = lam[:, None].float()
    # log(0) is -inf, which leaves the other summand as it is
    log_probs = torch.logaddexp(own.log_probs + share.log(), other.log_probs + (1 - share).log())
    at_label = log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return Targets(log_probs, torch.where(labels >= 0, at_label, torch.nan), own.dense and other.dense)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats of rows of natural log-probabilities, (N, C) each -> float64 (N,); q is normalised."""
    p, q = p.double(), torch.log_softmax(q.double(), dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def quality(output: TeacherOutput, labels: torch.Tensor, encoding: Encoding, fields: dict[str, np.ndarray]) -> Quality:
    """How good the teacher is on N views, and the KL between what it said and what `fields` give back."""
    full = torch.log_softmax(output.logits.double(), dim=1)
    kept = {name: torch.from_numpy(array).to(full.device) for name, array in fields.items()}
    back = encoding.decode(kept).log_probs
    ranked = full.topk(min(5, encoding.num_classes), dim=1).indices == labels[:, None]
    top = full.topk(encoding.k, dim=1).values.exp().sum(dim=1)
    return Quality(
        views=len(full),
        labelled=int((labels >= 0).sum()),
        top1=int(ranked[:, 0].sum()),
        top5=int(ranked.any(dim=1).sum()),
        retained_mass=float(top.sum()),
        kl=float(kl(full, back).sum()),
    )
