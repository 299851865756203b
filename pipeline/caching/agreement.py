"""How far cached rows are from what the live teacher says of the same views, beyond what rounding takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.targets import Calibration, Encoding, Feature, kl
from pipeline.targets.quality import relative_error
from pipeline.teacher import TeacherOutput

# A live-versus-live difference of zero (one machine, one plan) still leaves float32 its last bits.
FLOOR = 1e-5
SLACK = 4.0
# Rows of a basis are rounded to float32: their products are off by two units of 6e-8 at most.
ORTHONORMAL = 1e-6
# A scale of int8 makes so many times itself of a token's largest value.
_STEPS = 127
# Below the least of the live top k by so much, a kept class is no tie.
_TIE = 1e-3


@dataclass
class Agreement:
    """Of one group of fields, sums and extremes over the views compared.

    Attributes:
        control: largest difference of two live runs: nats of logits, relative to the largest value of features.
        gaps: of each batch its largest difference of cached and live beyond rounding, and where that is.
        lost: sums over the views of what encoding took, by name.
    """

    group: str
    views: int = 0
    control: float = 0.0
    gaps: list[tuple[float, str]] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """What difference is allowed."""
        return FLOOR + SLACK * self.control

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Batches beyond it."""
        found = [(where, gap) for gap, where in self.gaps if not gap <= self.tolerance]
        return [{"where": where, "difference": gap, "group": self.group} for where, gap in found]

    def count(self, control: float, gap: torch.Tensor, places: Sequence[str], **lost: float) -> None:
        """Add a batch: gaps float (N,) with the N views' names."""
        worst = int(gap.argmax())
        self.gaps.append((float(gap[worst]), places[worst]))
        self.control = max(self.control, control)
        self.views += len(places)
        for name, value in lost.items():
            self.lost[name] = self.lost.get(name, 0.0) + value

    def json(self) -> dict[str, Any]:
        """`views`, `control`, `tolerance`, `difference`, and means of what is lost."""
        means = {name: total / max(1, self.views) for name, total in self.lost.items()}
        worst = max((gap for gap, _ in self.gaps), default=0.0)
        return {
            "views": self.views,
            "control": self.control,
            "tolerance": self.tolerance,
            "difference": worst,
            **means,
        }


def compare_logits(
    total: Agreement,
    encoding: Encoding,
    stored: dict[str, np.ndarray],
    runs: tuple[TeacherOutput, TeacherOutput],
    labels: torch.Tensor,
    places: Sequence[str],
) -> None:
    """Add a batch's logits: the cached ones against the first of two live runs.

    Loses `truncation` and `quantisation`, the KL in nats that the top k and rounding each cost.
    """
    full, again = (torch.log_softmax(run.logits.float(), dim=1).cpu() for run in runs)
    control = float((full - again).abs().max())
    gap = _beyond_rounding(encoding, stored, runs[0].logits.float().cpu(), full, labels)
    names = [f.name for f in encoding.fields(("logits",))]
    kept = encoding.decode({name: torch.from_numpy(stored[name]) for name in names}).log_probs
    assert kept is not None
    cut, whole = float(kl(full, _unrounded(encoding, full)).sum()), float(kl(full, kept).sum())
    total.count(control, gap, places, truncation=cut, quantisation=whole - cut)


def compare_feature(
    total: Agreement,
    feature: Feature,
    stored: dict[str, np.ndarray],
    runs: tuple[torch.Tensor, torch.Tensor],
    calibration: Calibration | None,
    places: Sequence[str],
) -> None:
    """Add a batch's feature, as the live runs give it (N, D, ...); where it is on a basis, its projections count.

    Steps of int8 are as wide as the live token's would be, never as the cache says: a wide scale would excuse
    anything. What is left of the scales' difference counts like a difference of the token's largest value. A basis
    counts by how far its components are from orthonormal, because no projection on it tells.

    Loses `error`, relative and squared, of what reading gives back. It is not judged by itself: it is what rounding
    takes, which is bounded here, and what the basis leaves out, for which see `calibration_truth`.
    """
    on_basis = calibration if feature.rank is not None else None
    tokens = [run.movedim(1, -1).float() for run in runs]
    z, again = ((x if on_basis is None else on_basis.project(x)).cpu() for x in tokens)
    most = float(z.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    values = torch.from_numpy(stored[feature.name].astype(np.float32))
    if feature.dtype == "int8":
        scale, step, excess = (x[..., None] for x in _scales(feature, stored, tokens[0], calibration))
        beyond = torch.maximum((values * scale - z).abs() - step / 2, _STEPS * excess)
    else:
        step = torch.from_numpy(np.spacing(np.abs(np.nan_to_num(stored[feature.name]))).astype(np.float32))
        beyond = (values - z).abs() - step / 2
    gap = beyond.nan_to_num(torch.inf).clamp(min=0).flatten(1).amax(dim=1) / most
    off = 0.0 if on_basis is None else orthonormal_error(on_basis)
    if not off <= ORTHONORMAL:
        gap = gap.clamp(min=off)
    rows = {name: torch.from_numpy(array) for name, array in stored.items()}
    kept = feature.decode({f.name: rows[f.name] for f in feature.fields()}, calibration)
    error = float(relative_error(kept, tokens[0].cpu()).sum())
    total.count(float((z - again).abs().max()) / most, gap, places, error=error)


def orthonormal_error(calibration: Calibration) -> float:
    """Largest difference of C C^T from the identity; infinite where components are not finite."""
    if calibration.components is None:
        return 0.0
    rows = calibration.components.double()
    off = float((rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).abs().max())
    return off if math.isfinite(off) else math.inf


def _scales(
    feature: Feature, stored: dict[str, np.ndarray], live: torch.Tensor, calibration: Calibration | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token, float32: the stored scale; the widest step it excuses; by how much scales differ beyond rounding.

    Stored and live scale are both rounded to float16. So tokens that are nearly the same may have neighbouring scales,
    which for tiny tokens, where float16 has few of them, is much of a scale.
    """
    name = f"{feature.name}_scale"
    ours, theirs = stored[name], np.nan_to_num(feature.encode(live, calibration)[name])
    larger = np.nan_to_num(np.maximum(ours, theirs))
    neighbour = larger - np.nextafter(larger, np.float16(0))
    scale, now, rounding = (torch.from_numpy(x.astype(np.float32)) for x in (ours, theirs, neighbour))
    return scale, torch.minimum(scale, now + rounding), ((scale - now).abs() - rounding).clamp(min=0)


def _beyond_rounding(
    encoding: Encoding, stored: dict[str, np.ndarray], logits: torch.Tensor, full: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Largest difference of each view, float32 (N,), less half a step of the stored dtype where it was rounded."""
    if encoding.kind == "dense":
        return _gap(stored["logits"], logits)
    index = torch.from_numpy(stored["index"].astype(np.int64))
    now = full.gather(1, index.clamp(max=encoding.num_classes - 1))
    # Each kept class must also be one of the live top k, but for ties.
    least = full.topk(encoding.k, dim=1).values[:, -1:]
    now = torch.where(now < least - _TIE, torch.inf, now)
    at_label = full.gather(1, labels.clamp(min=0)[:, None])
    said = stored["label_log_prob"][:, None]
    unlabelled = (labels < 0)[:, None]
    agree = torch.from_numpy(np.isnan(said)) == unlabelled
    gap = torch.where(unlabelled & agree, 0, _gap(said, at_label)[:, None])
    return torch.maximum(_gap(stored["log_prob"], now), torch.where(agree, gap, torch.inf)[:, 0])


def _gap(cached: np.ndarray, now: torch.Tensor) -> torch.Tensor:
    """Largest difference in each row, float32 (N,), less half a step of the cached dtype; NaN counts as infinite."""
    step = np.spacing(np.abs(np.nan_to_num(cached))).astype(np.float32)
    gap = (torch.from_numpy(cached.astype(np.float32)) - now).abs() - torch.from_numpy(step) / 2
    return gap.nan_to_num(torch.inf).clamp(min=0).amax(dim=1)


def _unrounded(encoding: Encoding, full: torch.Tensor) -> torch.Tensor:
    """What the encoding would give back of log-probabilities if it did not round: its truncation alone."""
    if encoding.dense:
        return full
    same = replace(encoding, dtype="float32", pooled=None, map=None)
    fields = same.encode(TeacherOutput(full), torch.full((len(full),), -1))
    back = same.decode({name: torch.from_numpy(array) for name, array in fields.items()}).log_probs
    assert back is not None
    return back
