"""The whole batch where a loss compares rows with each other: those of all processes, differentiable."""

from typing import Any

import torch
from torch import distributed
from torch.autograd.function import once_differentiable

from kdpipe.losses.inputs import Context


def gathered(x: torch.Tensor, context: Context) -> torch.Tensor:
    """The rows of all ranks, in the ranks' order: (n, ...) -> (rows of all ranks, ...), on each of them.

    The gradient of a rank's own rows is the sum of all ranks' gradients for them. A loss that every rank computes
    of all rows thus needs neither `over_rows` nor another factor: averaged over ranks, as data-parallel training
    does, parameters get the gradient that one process would give them.

    Every rank must call it, with 0 rows if it has none, with the same trailing shape and dtype, and where one
    rank's rows take a gradient all ranks' must. With one rank it is the identity.

    Args:
        x: (n, ...), n may differ between ranks.
        context: see Context.
    """
    if context.world == 1:
        return x
    assert distributed.get_world_size() == context.world, "the context is of another group of processes"
    rows: torch.Tensor = _Gathered.apply(x)
    return rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        rank, world = distributed.get_rank(), distributed.get_world_size()
        sizes = [torch.empty(1, dtype=torch.int64, device=x.device) for _ in range(world)]
        distributed.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        counts: list[int] = torch.cat(sizes).tolist()
        # Backends want equal shapes: rows are padded to the most that a rank has.
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in range(world)]
        distributed.all_gather(parts, padded)
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        # A copy: the sum is taken in place, and the gradient may be another's too.
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[ctx.own]
