"""ScaleKD's cross-attention projector: queries at a teacher's positions attend to a student's map."""

import math
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.errors import TrainingError
from kdpipe.losses.base import float32

Shape = tuple[int, int, int]

# Attention is this much sharper than usual.
_SHARPNESS = 5.0
# Where heads don't divide the teacher's width, attention is as wide as the next multiple of this.
_ROUND = 64


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(5 d^-1/2 Q K^T) V, head by head: (B, Nq, E).

    ScaleKD (Fan et al., 2024), cross-attention projector; d = E / heads.

    Args:
        q: (B, Nq, E).
        k, v: (B, Nk, E).
        heads: divides E.
    """
    scale = _SHARPNESS / math.sqrt(q.shape[2] // heads)
    # (B, N, E) -> (B, heads, N, d)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3) * scale).softmax(dim=3) @ v).transpose(1, 2).flatten(2)


class CrossAttentionProjector(nn.Module):
    """A student's map (B, Cs, h, w) -> a map of the teacher's shape (B, Ct, H, W), whatever the student is.

    ScaleKD (Fan et al., 2024), CAP. Under autocast the layers are in its dtype, and attention, norm and what is
    returned in float32. Queries are learned, one a position of the teacher's map, or a map that is
    given. The key's bias moves no softmax, so its gradient is rounding; it is there because the paper's has one.

    Args:
        student: (Cs, h, w) of the map it takes; position embeddings are of this size.
        teacher: (Ct, H, W) of the map it makes.
        heads: of the attention.
        inner: its width, which `heads` divides; an output layer leads back to Ct.
        learned: whether it has its own queries.
    """

    def __init__(self, student: Shape, teacher: Shape, heads: int, inner: int, learned: bool = True) -> None:
        super().__init__()
        assert inner % heads == 0
        width, out, (height, wide) = student[0], teacher[0], teacher[1:]
        self.student, self.teacher, self.heads = student, teacher, heads
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.position = nn.Parameter(torch.empty(1, *student))
        self.queries = nn.Parameter(torch.randn(height * wide, out)) if learned else None
        self.query_conv = nn.Linear(out, out)  # a convolution of 1 x 1 on tokens
        self.q, self.k, self.v = nn.Linear(out, inner), nn.Linear(width, inner), nn.Linear(width, inner)
        self.out = nn.Linear(inner, out)
        self.norm = nn.LayerNorm(out)
        self.widen, self.narrow = nn.Linear(out, 4 * out), nn.Linear(4 * out, out)
        nn.init.trunc_normal_(self.position, std=0.02)

    @classmethod
    def of_width(cls, student: Shape, teacher: Shape, head_width: int, learned: bool = True) -> Self:
        """With heads of `head_width` channels, which together are as wide as the teacher's map.

        Where `head_width` doesn't divide its width (SLaK's 499 and 998 channels), attention is as wide as the next
        multiple of 64 (512 and 1024), in heads of 64.
        """
        out = teacher[0]
        inner, of = (out, head_width) if out % head_width == 0 else (-(-out // _ROUND) * _ROUND, _ROUND)
        return cls(student, teacher, inner // of, inner, learned)

    def forward(self, x: torch.Tensor, queries: torch.Tensor | None = None) -> torch.Tensor:
        """Map (B, Cs, h, w), and queries as a map (B, Ct, H, W) where they aren't learned -> (B, Ct, H, W).

        Raises:
            TrainingError: a map of another size than it was made for.
        """
        if tuple(x.shape[1:]) != self.student:
            what = "the student's map has another shape than the projector was made for"
            found = tuple(x.shape[1:])
            raise TrainingError(what, where="cap", found=found, allowed=self.student, do="Train at one image size")
        assert (queries is None) == (self.queries is not None)
        y = F.relu(self.bn(self.conv(x))) + self.position
        tokens = y.flatten(2).transpose(1, 2)  # (B, hw, Cs)
        if self.queries is not None:
            tokens_q = self.queries.expand(len(x), -1, -1)
        else:
            assert queries is not None
            tokens_q = queries.flatten(2).transpose(1, 2)  # (B, HW, Ct)
        q, k, v = self.q(F.relu(self.query_conv(tokens_q))), self.k(tokens), self.v(tokens)
        # Positions differ little from each other at first, and L_freq depends on these differences alone.
        with torch.autocast(x.device.type, enabled=False):
            u = self.norm(self.out(attend(float32(q), float32(k), float32(v), self.heads)))
        z = u + self.narrow(F.relu(self.widen(u)))  # (B, HW, Ct)
        return z.transpose(1, 2).unflatten(2, self.teacher[1:])
