"""What makes up a published layout: how it is recognised, renamed, and what it implies."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

State = dict[str, torch.Tensor]


class Layout(NamedTuple):
    """One repository's way of naming weights. Each function looks at keys and shapes only, never at values.

    Attributes:
        name: of the family, with which its models' names begin.
        recognises: whether a state dict is of this layout.
        rename: a state dict of this layout -> one under our names.
        implies: the model's arguments that such a state dict needs, beside the registered ones.
    """

    name: str
    recognises: Callable[[State], bool]
    rename: Callable[[State], State]
    implies: Callable[[State], dict[str, Any]]


Rules = Iterable[tuple[str, str]]


def renamed(state: State, rules: Rules) -> State:
    """Apply regular expressions to every key, each to what the one before it made."""
    compiled = [(re.compile(pattern), to) for pattern, to in rules]
    out = {}
    for key, value in state.items():
        new = key
        for pattern, to in compiled:
            new = pattern.sub(to, new)
        out[new] = value
    return out


def holds(state: State, pattern: str) -> bool:
    """Whether any key matches from its beginning."""
    return any(re.match(pattern, key) for key in state)
