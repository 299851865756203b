"""Names that training scripts put before a network's own: found by fit against the network's, and taken off."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path

import torch

from kdpipe.errors import TeacherError
from kdpipe.models.converters import recognise

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]
# Components that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere in a name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What thop leaves in every module, and torch.optim.swa_utils.AveragedModel beside them.
_COUNTERS = {"total_ops", "total_params", "n_averaged"}


def under(state: State, prefix: str, where: str | Path) -> State:
    """The tensors whose names begin with `prefix`, with or without its dot; the names without it.

    Raises:
        TeacherError: there are none.
    """
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    found = {key.removeprefix(dotted): tensor for key, tensor in state.items() if key.startswith(dotted)}
    if not found:
        first = sorted({key.partition(".")[0] + "." for key in state if "." in key})
        allowed = ", ".join(first)[:300] or "none: the names have no dots"
        do = "Check --key-prefix"
        raise TeacherError("no weights have this prefix", where=where, found=prefix, allowed=allowed, do=do)
    return found


def unwrapped(state: State) -> State:
    """Names without the components that wrappers add, unless two would be the same; without what all names of a
    published layout begin with.
    """
    short = {".".join(p for p in key.split(".") if p not in _WRAPPERS): tensor for key, tensor in state.items()}
    state = short if len(short) == len(state) and "" not in short else state
    if recognise(state) is None:
        first, last = min(state, default=""), max(state, default="")
        parts = takewhile(lambda pair: pair[0] == pair[1], zip(first.split("."), last.split("."), strict=False))
        common = sum(1 for _ in parts)
        bare = {".".join(key.split(".")[common:]): tensor for key, tensor in state.items()}
        if common and recognise(bare) is not None:
            return bare
    return state


def aligned(own: Shapes, state: State, classifier: Iterable[str], where: str | Path) -> tuple[State, list[str]]:
    """`state` under the names of a network, as far as they can be found, and remarks about what was done.

    Args:
        own: shapes of the network's tensors.
        state: with the network's names, or those after a prefix. What lies outside of the prefix is left out.
        classifier: names of the classifier's tensors, whose number of classes may differ.
        where: the file, for messages.

    Raises:
        TeacherError: all of the network's tensors are there under several prefixes.
    """
    remarks = []
    state, counters = _without_counters(own, state)
    if counters:
        remarks.append(f"{counters} counters of operations or averages are left out")
    if not (own.keys() <= state.keys()):
        heads = set(classifier)
        found = _prefixes(own, state, heads)
        best = _best(own, found, where)
        if best:
            inside = {key.removeprefix(best): t for key, t in state.items() if key.startswith(best)}
            outside = {key: t for key, t in state.items() if not key.startswith(best)}
            head = _take_head(own, inside, outside, heads)
            text = f"the weights' names are taken without {best!r}"
            text += f"; classifier from {head!r}" if head else ""
            remarks.append(text + (f"; {len(outside)} others are left out: {_some(outside)}" if outside else ""))
            state = inside
    missing = [key for key in own if key.endswith("num_batches_tracked") and key not in state]
    if missing and own.keys() - state.keys() == set(missing):
        state = {**state, **{key: torch.zeros(own[key], dtype=torch.int64) for key in missing}}
        remarks.append(f"{len(missing)} counters num_batches_tracked are missing, and taken as 0")
    return state, remarks


def _without_counters(own: Shapes, state: State) -> tuple[State, int]:
    kept = {k: t for k, t in state.items() if k in own or k.rpartition(".")[2] not in _COUNTERS or t.numel() > 1}
    return kept, len(state) - len(kept)


def _prefixes(own: Shapes, state: State, heads: set[str]) -> Counter[str]:
    """How many tensors fit after each prefix; the empty one included."""
    found: Counter[str] = Counter()
    for key, tensor in state.items():
        parts = key.split(".")
        for at in range(len(parts)):
            rest = ".".join(parts[at:])
            if rest in own and (own[rest] == tuple(tensor.shape) or rest in heads):
                found[key.removesuffix(rest)] += 1
    return found


def _best(own: Shapes, found: Mapping[str, int], where: str | Path) -> str:
    most = max(found.values(), default=0)
    # Half of a network's tensors: fewer are those of another.
    if 2 * most < len(own):
        return ""
    best = sorted((prefix for prefix, count in found.items() if count == most), key=len)
    if len(best) > 1 and best[0]:
        raise TeacherError(
            "the file holds the network's weights several times",
            where=where,
            found=", ".join(best)[:300],
            do="Choose with --key-prefix",
        )
    return best[0]


def _take_head(own: Shapes, inside: State, outside: State, heads: set[str]) -> str | None:
    """Where only the classifier is missing, move it from `outside`, in which it must be the only layer of its form.

    Returns:
        What its names began with; None where nothing was moved.
    """
    missing = own.keys() - inside.keys()
    absent = {key for key in missing if not key.endswith("num_batches_tracked")}
    if not absent or not absent <= heads:
        return None
    moved = {}
    for key in absent:
        part, dims = key.rpartition(".")[2], own[key][1:]
        fit = [k for k, t in outside.items() if k not in own and k.endswith(part) and tuple(t.shape)[1:] == dims]
        fit = [k for k in fit if outside[k].ndim == len(own[key])]
        if len(fit) != 1:
            return None
        moved[key] = fit[0]
    layers = {name.rpartition(".")[0] + "." for name in moved.values()}
    if len(layers) != 1:
        return None
    inside.update({key: outside.pop(name) for key, name in moved.items()})
    return layers.pop()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" ..." if listed[3:] else "")
