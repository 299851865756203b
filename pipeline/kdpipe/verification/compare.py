"""How far cached rows are from the live teacher's outputs for the same views, beyond what rounding takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from kdpipe.caching.determinism import FLOOR, bound_of, live_difference, rounding
from kdpipe.targets import Calibration, Encoding, Feature, kl
from kdpipe.targets.quality import relative_error
from kdpipe.teacher import CAUSES, NOT_A_FUNCTION, TeacherOutput
from kdpipe.verification.averages import Averages

SLACK = 4.0
# Rows of a basis are rounded to float32: their products are off by two units of 6e-8 at most.
ORTHONORMAL = 1e-6
# A scale of int8 makes so many times itself of a token's largest value.
_STEPS = 127
# Below the least of the live top k by so much, a kept class is no tie.
_TIE = 1e-3


@dataclass
class Comparison:
    """Of one group of fields, sums and extremes over the views compared.

    Args:
        group: of `GROUPS`.
        dtype: the live teacher's compute dtype.
        declared: whether the cache's teacher is declared nondeterministic. Then the distances are means over a batch:
            of probability that differs, of logits; of relative squared errors, of features.

    Attributes:
        control: largest difference of two live runs: nats of logits, relative to the largest value of features.
        bound: the largest that rounding may make of it, in the same units.
        beyond: batches where it is more than their own bound: where, difference, bound.
        gaps: of each batch its largest difference of cached and live beyond rounding, and where that is.
        averages: of a teacher declared nondeterministic.
        lost: sums over the views of what encoding took, by name.
    """

    group: str
    dtype: str
    declared: bool = False
    views: int = 0
    control: float = 0.0
    bound: float = 0.0
    beyond: list[tuple[str, float, float]] = field(default_factory=list)
    gaps: list[tuple[float, str]] = field(default_factory=list)
    averages: Averages = field(default_factory=Averages)
    lost: dict[str, float] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        """What difference is allowed: never more than rounding explains, however far apart two live runs are."""
        return FLOOR + SLACK * (self.control if self.declared else min(self.control, self.bound))

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Batches beyond it; none where two live runs already differ so much that there is no right output."""
        if self.beyond:
            return []
        found = [(where, gap) for gap, where in self.gaps if not gap <= self.tolerance]
        return [{"where": where, "difference": gap, "group": self.group} for where, gap in found]

    @property
    def reason(self) -> str | None:
        """Why the group can't be right, whatever its values; None for no such reason."""
        if self.declared and self.views:
            what = self.averages.what()
            return None if what is None else f"{self.group}: {what}"
        if not self.beyond:
            return None
        where, found, bound = self.beyond[0]
        return (
            f"{self.group}: {NOT_A_FUNCTION}: live against live {found:.3g} at {where}, at most {bound:.3g} is "
            f"rounding in {self.dtype}; likely causes: {CAUSES}"
        )

    @property
    def remark(self) -> str | None:
        """What was compared of a teacher declared nondeterministic."""
        if not (self.declared and self.views):
            return None
        ours, theirs = self.averages.means
        return (
            f"{self.group}: teacher declared nondeterministic: only averages over {self.views} views are checked; "
            f"cached is {ours:.3g} from a live run, another live run {theirs:.3g}"
        )

    def live(self, first: torch.Tensor, again: torch.Tensor, places: Sequence[str]) -> None:
        """Compare two live runs of a batch, outputs (N, ...), with what rounding explains."""
        found, bound = live_difference(self.group, first, again), bound_of(self.group, first, rounding(self.dtype))
        if not found <= bound:
            self.beyond.append((places[0], found, bound))

    def average(self, cached: float, live: float, places: Sequence[str], **lost: float) -> None:
        """Add a batch of a teacher declared nondeterministic by its mean distances from the first live run."""
        self.averages.cached.append(cached)
        self.averages.live.append(live)
        gap = torch.tensor([cached]).nan_to_num(torch.inf)
        self.count(live, gap, places[:1], **lost)
        self.views += len(places) - 1

    def count(
        self, control: float, gap: torch.Tensor, places: Sequence[str], *, bound: float = 0.0, **lost: float
    ) -> None:
        """Add a batch: gaps float (N,) with the N views' names."""
        self.bound = max(self.bound, bound)
        worst = int(gap.argmax())
        self.gaps.append((float(gap[worst]), places[worst]))
        self.control = max(self.control, control)
        self.views += len(places)
        for name, value in lost.items():
            self.lost[name] = self.lost.get(name, 0.0) + value

    def json(self) -> dict[str, Any]:
        """`views`, `control`, its `bound` (None if declared), `tolerance`, `difference`, means of what is lost."""
        means = {name: total / max(1, self.views) for name, total in self.lost.items()}
        worst = max((gap for gap, _ in self.gaps), default=0.0)
        return {
            "views": self.views,
            "control": self.control,
            "bound": None if self.declared else self.bound,
            "tolerance": self.tolerance,
            "difference": worst,
            **means,
        }


def compare_logits(
    total: Comparison,
    encoding: Encoding,
    stored: dict[str, np.ndarray],
    runs: tuple[TeacherOutput, TeacherOutput],
    labels: torch.Tensor,
    places: Sequence[str],
) -> None:
    """Add a batch's logits: the cached ones against the first of two live runs.

    Loses `truncation` and `quantisation`, the KL in nats that the top k and rounding each cost.
    """
    first, again = (run.logits.float().cpu() for run in runs)
    full = torch.log_softmax(first, dim=1)
    lost = kl(full, _read_back(encoding, stored))
    cut = float(kl(full, _unrounded(encoding, full)).sum())
    losses = {"truncation": cut, "quantisation": float(lost.sum()) - cut}
    if total.declared:
        theirs = replace(encoding, pooled=None, map=None).encode(TeacherOutput(again), labels)
        far, other = (_distance(encoding, fields, full, labels) for fields in (stored, theirs))
        total.average(far, other, places, **losses)
        return
    total.live(first, again, places)
    gap = _beyond_rounding(encoding, stored, first, full, labels)
    bound = bound_of("logits", first, rounding(total.dtype))
    total.count(live_difference("logits", first, again), gap, places, bound=bound, **losses)


def compare_feature(
    total: Comparison,
    feature: Feature,
    stored: dict[str, np.ndarray],
    runs: tuple[torch.Tensor, torch.Tensor],
    calibration: Calibration | None,
    places: Sequence[str],
) -> None:
    """Add a batch's feature, as the live runs give it (N, D, ...); where it is on a basis, its projections count.

    Steps of int8 are as wide as the live token's would be, never as the cache gives: a wide scale would hide
    anything. What is left of the scales' difference counts like a difference of the token's largest value. A basis
    counts by how far its components are from orthonormal, because no projection on it shows that.

    Loses `error`, relative and squared, of what reading gives back. It is not checked by itself: it is what rounding
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
    errors = relative_error(kept, tokens[0].cpu())
    if total.declared:
        other = feature.encode(tokens[1], calibration)
        back = feature.decode({name: torch.from_numpy(array) for name, array in other.items()}, calibration)
        theirs = relative_error(back, tokens[0].cpu())
        total.average(float(errors.mean()), float(theirs.mean()), places, error=float(errors.sum()))
        return
    total.live(tokens[0], tokens[1], places)
    # Projections leave out the mean, whose rounding stays: the bound is relative to the tokens' largest value.
    bound = bound_of(feature.name, tokens[0], rounding(total.dtype)) * float(tokens[0].abs().max()) / most
    total.count(float((z - again).abs().max()) / most, gap, places, bound=bound, error=float(errors.sum()))


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
    """Of each token, float32: the stored scale; the widest step it allows; by how much scales differ beyond rounding.

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
    now = torch.where(_impossible(index, encoding.num_classes)[:, None], torch.inf, now)
    # Each kept class must also be one of the live top k, but for ties.
    least = full.topk(encoding.k, dim=1).values[:, -1:]
    now = torch.where(now < least - _TIE, torch.inf, now)
    at_label = full.gather(1, labels.clamp(min=0)[:, None])
    at_label_cached = stored["label_log_prob"][:, None]
    unlabelled = (labels < 0)[:, None]
    agree = torch.from_numpy(np.isnan(at_label_cached)) == unlabelled
    gap = torch.where(unlabelled & agree, 0, _gap(at_label_cached, at_label)[:, None])
    return torch.maximum(_gap(stored["log_prob"], now), torch.where(agree, gap, torch.inf)[:, 0])


def _impossible(index: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Rows, bool (N,), that name a class twice, so that another is missing, or one that doesn't exist."""
    ordered = index.sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(dim=1) | (ordered[:, -1] >= num_classes)


def _read_back(encoding: Encoding, stored: dict[str, np.ndarray]) -> torch.Tensor:
    """Log-probabilities (N, C) that reading gives; a class that doesn't exist, which counts elsewhere, is the last."""
    fields = {f.name: torch.from_numpy(stored[f.name]) for f in encoding.fields(("logits",))}
    if "index" in fields:
        fields["index"] = fields["index"].to(torch.int64).clamp(max=encoding.num_classes - 1)
    kept = encoding.decode(fields).log_probs
    assert kept is not None
    return kept


def _distance(encoding: Encoding, fields: dict[str, np.ndarray], full: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean over the rows: probability that a live run and what reading the fields gives have on other classes.

    The label's own is added. Between 0 and 2, so that no single row weighs much; infinite for rows that can't be.
    """
    far = (full.exp() - torch.softmax(_read_back(encoding, fields), dim=1)).abs().sum(dim=1) / 2
    if "label_log_prob" in fields:
        at_label = full.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        apart = (torch.from_numpy(fields["label_log_prob"]).float().exp() - at_label.exp()).abs()
        agree = torch.from_numpy(np.isnan(fields["label_log_prob"])) == (labels < 0)
        far = far + torch.where(labels < 0, 0, apart).where(agree, torch.inf)
    if "index" in fields:
        index = torch.from_numpy(fields["index"].astype(np.int64))
        far = torch.where(_impossible(index, encoding.num_classes), torch.inf, far)
    return float(far.mean())


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
