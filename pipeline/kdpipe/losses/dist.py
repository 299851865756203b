"""DIST: correlations instead of equal values, within each row and within each class over the batch."""

import torch

from kdpipe.losses.base import Loss, Parts, float32, given
from kdpipe.losses.config import DistConfig
from kdpipe.losses.gather import gathered
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.losses.logit import cross_entropy
from kdpipe.targets import Labels, Targets


def pearson(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Pearson's correlation of each row: float (n, m) twice -> (n,).

    `eps` is added to the product of the norms of the centred rows: a constant row gives 0.
    """
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + eps)


def dist_inter(student: torch.Tensor, teacher: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """1 - mean_n pearson(Ys[n], Yt[n]), relations between the classes of a row: ().

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), inter-class loss; Y = softmax(z / tau).

    Args:
        student: logits (n, C), n > 0.
        teacher: logits or log-probabilities (n, C).
        tau: temperature.
    """
    return 1 - pearson(*_softmaxes(student, teacher, tau)).mean()


def dist_intra(student: torch.Tensor, teacher: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """1 - mean_c pearson(Ys[:, c], Yt[:, c]), relations between the rows of a class: ().

    Huang et al. (2022), intra-class loss. Arguments as in `dist_inter`; the rows are those of the whole batch,
    whose loss is not the mean of its parts' losses.
    """
    y_s, y_t = _softmaxes(student, teacher, tau)
    return 1 - pearson(y_s.T, y_t.T).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """2 tau^2 (`dist_inter` + `dist_intra`) of the whole batch, without the cross entropy against labels: ()."""
    return 2 * tau**2 * (dist_inter(student, teacher, tau) + dist_intra(student, teacher, tau))


class Dist(Loss):
    """CE + 2 tau^2 (`dist_inter` + `dist_intra`), over all rows of the batch on all ranks; CE over the labelled.

    Columns of classes that are rarely in the top k would correlate with the tail, so it needs dense targets at any
    temperature. Parts: `dist_inter`, `dist_intra`, `ce`.
    """

    name, Config = "dist", DistConfig
    config: DistConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        c = self.config
        student, teacher = gathered(output.logits, context), gathered(given(targets.log_probs), context)
        inter, intra = dist_inter(student, teacher, c.tau), dist_intra(student, teacher, c.tau)
        ce = cross_entropy(output.logits, labels, context, c.label_smoothing)
        return {"loss": ce + 2 * c.tau**2 * (inter + intra), "dist_inter": inter, "dist_intra": intra, "ce": ce}


def _softmaxes(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    # (n, C) each
    return torch.softmax(float32(student) / tau, dim=1), torch.softmax(float32(teacher) / tau, dim=1)
