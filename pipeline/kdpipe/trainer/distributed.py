"""The processes of a run, as torchrun starts them: gloo on CPUs, nccl on GPUs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn

from kdpipe.errors import TrainingError
from kdpipe.models import first_line
from kdpipe.teacher import resolve_device


@dataclass(frozen=True)
class Distributed:
    """This process among those of the run. `device` is its own."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def agree(self, flag: bool) -> bool:
        """The first process's output, in all of them; all wait for it."""
        if self.world == 1:
            return flag
        shared = torch.tensor(int(flag), device=self.device)
        distributed.broadcast(shared, src=0)
        return bool(shared.item())

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the processes of a float64 tensor."""
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the first one's buffers (batch statistics), so that all evaluate one model."""
        if self.world > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)


@contextmanager
def joined(device: str) -> Iterator[Distributed]:
    """Join the run that torchrun's environment describes, or be the only process.

    Raises:
        TrainingError: more processes on this machine than it has GPUs, or half of torchrun's environment.
    """
    world = _number("WORLD_SIZE", 1)
    own = resolve_device(device)
    if world == 1:
        yield Distributed(0, 1, own)
        return
    rank, local = _number("RANK"), _number("LOCAL_RANK")
    if own.type == "cuda":
        if local >= torch.cuda.device_count():
            raise TrainingError(
                "more processes than GPUs",
                found=local + 1,
                allowed=torch.cuda.device_count(),
                do="Lower --nproc-per-node",
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", rank=rank, world_size=world)
    except (ValueError, RuntimeError) as e:
        raise TrainingError(
            f"the processes of the run can't find each other: {first_line(e)}",
            where=f"rank {rank} of {world}",
            do="Start with torchrun, or unset WORLD_SIZE to train in one process",
        ) from e
    try:
        yield Distributed(rank, world, own)
    finally:
        distributed.destroy_process_group()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise TrainingError(
            "the environment does not describe a run of several processes",
            where=name,
            found=text or "nothing",
            allowed="WORLD_SIZE, RANK and LOCAL_RANK as torchrun sets them",
            do="Start with torchrun, or unset WORLD_SIZE to train in one process",
        )
    return int(text)
