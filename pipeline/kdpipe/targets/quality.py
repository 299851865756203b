"""How good a teacher is, and what its encoding loses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets.encoding import Encoding
from kdpipe.targets.features import Calibration

if TYPE_CHECKING:
    import torch

    from kdpipe.teacher import TeacherOutput

# Views of a map that are decoded at a time: it is the largest of what is kept.
_AT_ONCE = 64
_COUNTS = ("views", "labelled", "top1", "top5")


@dataclass
class Quality:
    """Sums over views of how good a teacher is and what its encoding loses; adds up.

    Attributes:
        views, labelled, top1, top5: counts; the last two of labelled views.
        retained_mass, kl: probability of the kept classes, and KL divergence in nats of the teacher's distribution
            from the decoded one; None where no logits are kept.
        pooled_error, map_error: squared error of the decoded feature, relative to the squared values of a view;
            None where that feature isn't kept.
    """

    views: int = 0
    labelled: int = 0
    top1: int = 0
    top5: int = 0
    retained_mass: float | None = None
    kl: float | None = None
    pooled_error: float | None = None
    map_error: float | None = None

    def add(self, other: Quality) -> None:
        """Accumulate another part."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            setattr(self, name, value if own is None else own if value is None else own + value)

    def part(self, views: int, whole: int) -> Quality:
        """The share that so many of the `whole` views have in the sums: the same means, but for rounding."""
        if views == whole:
            return self
        share = {name: value * views / whole for name, value in vars(self).items() if value is not None}
        return Quality(**{name: round(value) if name in _COUNTS else value for name, value in share.items()})

    def json(self) -> dict[str, Any]:
        """As recorded: what is known."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def means(self) -> dict[str, float | int | None]:
        """Averages for people: accuracies over the labelled views, the rest over all; None for what isn't kept."""
        labelled, views = max(1, self.labelled), max(1, self.views)
        lost = {
            "retained_mass": self.retained_mass,
            "encoding_loss": self.kl,
            "pooled_error": self.pooled_error,
            "map_error": self.map_error,
        }
        return {
            "views": self.views,
            "teacher_top1": self.top1 / labelled if self.labelled else None,
            "teacher_top5": self.top5 / labelled if self.labelled else None,
            **{name: None if total is None else total / views for name, total in lost.items()},
        }


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats of rows of natural log-probabilities, (N, C) each -> float64 (N,); q is normalised."""
    p, q = p.double(), q.double().log_softmax(dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def relative_error(kept: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Squared error of each row relative to the row's squared values, (N, ...) each -> float64 (N,); 0 for zeros."""
    import torch

    kept, original = kept.double().flatten(1), original.double().flatten(1)
    lost, whole = (kept - original).square().sum(dim=1), original.square().sum(dim=1)
    return torch.where(lost == 0, lost, lost / whole.clamp(min=torch.finfo(torch.float64).tiny))


def quality(
    output: TeacherOutput,
    labels: torch.Tensor,
    encoding: Encoding,
    fields: dict[str, np.ndarray],
    calibration: Calibration | None = None,
) -> Quality:
    """How good the teacher is on N views, and how far its decoded `fields` are from its outputs.

    `calibration` is that of the map, where it is kept on a basis.
    """
    import torch

    full = output.logits.double().log_softmax(dim=1)
    ranked = full.topk(min(5, encoding.num_classes), dim=1).indices == labels[:, None]
    found = Quality(
        views=len(full),
        labelled=int((labels >= 0).sum()),
        top1=int(ranked[:, 0].sum()),
        top5=int(ranked.any(dim=1).sum()),
    )
    names = [field.name for field in encoding.fields(("logits",))]
    back = encoding.decode({n: torch.from_numpy(fields[n]).to(full.device) for n in names}).log_probs
    if back is not None:
        found.retained_mass = float(full.topk(encoding.k, dim=1).values.exp().sum(dim=1).sum())
        found.kl = float(kl(full, back).sum())
    for feature in encoding.features:
        original: torch.Tensor | None = getattr(output, feature.name)
        assert original is not None, f"no {feature.name} in the teacher's output"
        total = 0.0
        for start in range(0, len(original), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            own = {f.name: torch.from_numpy(fields[f.name][rows]).to(original.device) for f in feature.fields()}
            kept = getattr(encoding.decode(own, calibration), feature.name)
            total += float(relative_error(kept, original[rows]).sum())
        setattr(found, f"{feature.name}_error", total)
    return found
