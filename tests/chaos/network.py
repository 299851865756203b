"""The teacher of the disturbed runs: slow enough to be disturbed, and it may bring a fault into a worker."""

import json
import os
import time

import torch
from torch import nn

from tests.chaos.moments import Fault, Moments
from tests.teacher.users import Users
from tests.tiny import CLASSES
from tests.tiny import network as tiny

# A fault as JSON, for the worker that loads the teacher; and seconds that a batch takes.
FAULT, SECONDS = "KDPIPE_CHAOS_FAULT", "KDPIPE_CHAOS_SECONDS"


class Slow(nn.Module):
    """A network that takes its time."""

    def __init__(self, inner: nn.Module, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds = inner, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.inner(x)


def network(num_classes: int = CLASSES) -> nn.Module:
    """The tiny network."""
    fault = os.environ.pop(FAULT, None)
    if fault:
        Moments(Fault(**json.loads(fault))).install()
    return Slow(tiny(num_classes), float(os.environ.get(SECONDS, "0")))


def featured(num_classes: int = CLASSES) -> nn.Module:
    """A network with a map of 5 channels of 4 x 4."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Users("right")
