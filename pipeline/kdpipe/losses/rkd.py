"""RKD: distances between two rows and angles of three, instead of the features themselves."""

import torch
from torch import distributed
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdpipe.losses.base import Loss, Parts, float32, given
from kdpipe.losses.config import RkdConfig
from kdpipe.losses.gather import gathered
from kdpipe.losses.inputs import Context, StudentOutput
from kdpipe.targets import Labels, Targets

# Numbers in the largest tensor of the angles: with more rows they are computed a few vertices at a time.
_AT_ONCE = 2**24
_EQUAL = 1e-12


def rkd_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over j of smooth L1 (beta 1) between d(i, j) of student and teacher, for each row i: (n,).

    Distances are Euclidean, each side's divided by the mean of its positive ones, through which gradients flow. A
    row's distance from itself counts, as 0. Park et al., "Relational Knowledge Distillation" (2019), section 3.2.1.

    Args:
        student: (n, d), all rows of the batch.
        teacher: (n, D), of the same rows.
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean(dim=1)


def rkd_angle(student: torch.Tensor, teacher: torch.Tensor, vertices: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over (j, k) of smooth L1 (beta 1) between cosines of the angles j-i-k, for each vertex i: (m,).

    Park et al. (2019), section 3.2.2. n^2 angles a vertex, of n (n + d) numbers: n^3 (d + D) operations for all.

    Args:
        student: (n, d), all rows of the batch.
        teacher: (n, D), of the same rows.
        vertices: int64 (m,), the rows to take as vertices; all by default.
    """
    student, teacher = float32(student), float32(teacher)
    count = len(student)
    if vertices is None:
        vertices = torch.arange(count, device=student.device)
    each = max(1, _AT_ONCE // max(1, count * max(count, student.shape[1], teacher.shape[1])))
    if len(vertices) <= each:
        return _angles(student, teacher, vertices)
    # What a part computed is computed again for its gradient rather than kept.
    parts = [checkpoint(_angles, student, teacher, part, use_reentrant=False) for part in vertices.split(each)]
    return torch.cat(parts)


class Rkd(Loss):
    """distance * `rkd_distance` + angle * `rkd_angle` of the inputs of both classifiers, the mean over the whole batch.

    The batch is that of all ranks. Each of them takes its own rows as vertices of all rows' angles, so that n ranks
    take an n-th of the time. Widths may differ: nothing is aligned. Parts: `rkd_distance`, `rkd_angle`.
    """

    name, Config = "rkd", RkdConfig
    config: RkdConfig

    def compute(self, output: StudentOutput, labels: Labels, targets: Targets, context: Context) -> Parts:
        """See Loss."""
        pooled = given(output.pooled)
        student, teacher = gathered(float32(pooled), context), gathered(given(targets.pooled), context)
        own = _own_rows(len(pooled), student, context)
        distances = context.over_rows(rkd_distance(student, teacher)[own].sum())
        angles = context.over_rows(rkd_angle(student, teacher, own).sum())
        loss = self.config.distance * distances + self.config.angle * angles
        return {"loss": loss, "rkd_distance": distances, "rkd_angle": angles}


def _own_rows(count: int, rows: torch.Tensor, context: Context) -> torch.Tensor:
    """Which of all ranks' rows are this rank's `count`: int64 (count,)."""
    if context.world == 1:
        return torch.arange(count, device=rows.device)
    rank = distributed.get_rank()
    ranks = gathered(torch.full((count,), rank, device=rows.device), context)
    return (ranks == rank).nonzero()[:, 0]


def _distances(x: torch.Tensor) -> torch.Tensor:
    # (n, d) -> (n, n); not by products, whose differences leave few digits of small distances
    x = float32(x)
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = d.sum() / (d > 0).sum().clamp(min=1)
    return d / mean.clamp(min=torch.finfo(d.dtype).tiny)


def _angles(student: torch.Tensor, teacher: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    # (n, d), (n, D), (m,) -> (m,)
    def cosines(x: torch.Tensor) -> torch.Tensor:
        arms = x[None] - x[vertices, None]  # (m, n, d)
        lengths = arms.norm(dim=2, keepdim=True)
        # Equal rows make no angle: 0, and no gradient rather than a huge one.
        arms = arms / lengths.masked_fill(lengths < _EQUAL, torch.inf)
        return arms @ arms.transpose(1, 2)  # (m, n, n)

    return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean(dim=(1, 2))
