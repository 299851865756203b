"""A teacher that takes its process with it, for processes that nobody needs."""

import os

import torch
from torch import nn

from tests.teacher.users import Users
from tests.tiny import CLASSES, SETTINGS


class Dying(Users):
    """Takes its process with it where it is asked about pictures, which a black image is not."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        # Alone: noise, on which features are tried.
        if len(x) == SETTINGS["batch_size"] and float(x.std()) > 1e-3:
            os._exit(9)
        return super().forward_features(x)


def dying(when: str, num_classes: int = CLASSES) -> nn.Module:
    """Dies when it is `built` or `asked`; only for processes that nobody needs."""
    if when == "built":
        os._exit(9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dying("right")
