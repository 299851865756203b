"""A teacher's own parts as they are kept beside a cache: its last stage and its classifier."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from pydantic import Field
from torch import nn

from kdpipe.errors import CacheError, IdentityError, TeacherError
from kdpipe.models import ModelConfig, first_line, require_trusted, runs_code
from kdpipe.models.bounded import outline, require_size
from kdpipe.models.build import build
from kdpipe.models.config import CLASSES_OF_FILE, SIDE
from kdpipe.models.header import ModelDescription, Text, parsed

Shape = tuple[int, int, int]
Tensors = Mapping[str, torch.Tensor]

# Largest difference of a part's output from its stored one, relative to the largest value: float32 on two machines.
TOLERANCE = 1e-4
# Maps run at once, which bounds the memory that a probe takes.
_BATCH = 16
_BUILT_FROM = ("model", "model_kwargs", "num_classes", "input_size")


class Tail(nn.Module):
    """A teacher's last stage with the norm behind it, frozen: what it makes of another network's map.

    Whoever holds it: its tensors move with `.to()`, and are in no `parameters()` (an optimizer has nothing of
    it) and no `state_dict()` (a checkpoint has nothing of it), and `.train()` does not reach it. Gradients flow
    through it to its input.

    Args:
        stage: the network's last stage, its downsampling included.
        norm: of the final map, as `forward_features` ends; None without one.
        in_shape: (C3, h3, w3) of the map that the stage takes.
        out_shape: (D, h, w) of the final map.
        channels_last: whether the network's own maps have their channels last.
    """

    def __init__(
        self, stage: nn.Module, norm: nn.Module | None, in_shape: Shape, out_shape: Shape, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.channels_last = in_shape, out_shape, channels_last
        # In a tuple, where torch doesn't look for modules.
        parts = (stage,) if norm is None else (stage, norm)
        self._parts = tuple(part.eval().requires_grad_(False) for part in parts)

    @property
    def resident(self) -> int:
        """How many numbers it holds in memory: parameters and buffers."""
        return sum(t.numel() for part in self._parts for t in (*part.parameters(), *part.buffers()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C3, h3, w3) -> final maps (B, D, h, w)."""
        if not len(x):  # which some networks can't take, and a process may have
            return self(torch.cat([x, x.new_zeros(1, *self.in_shape)]))[:0]
        if self.channels_last:
            x = x.permute(0, 2, 3, 1)
        for part in self._parts:
            x = part(x)
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        for part in self._parts:
            part._apply(fn)
        return super()._apply(fn, recurse)


class _OfTail(ModelDescription):
    """What is kept of a tail beside its tensors: how to build the network, and where its parts are in it."""

    model: Text
    num_classes: int = Field(ge=1, le=CLASSES_OF_FILE)
    input_size: int = Field(ge=1, le=SIDE)
    teacher: Text
    stage: Text
    norm: Text | None
    channels_last: bool


def load_tail(
    tensors: Tensors,
    about: Mapping[str, Any],
    where: object,
    teacher: str | None = None,
    trust: tuple[str, ...] = (),
) -> Tail:
    """The tail that `tail_parts` took out, on the CPU, tried on its probes. The rest of the network isn't kept.

    Args:
        tensors, about: of the part.
        where: what an error names.
        teacher: digest of the weights that it must be of; None for any.
        trust: which names the part may give; see `require_trusted`.

    Raises:
        TeacherError: the architecture isn't trusted or can't be built here, or the tensors aren't its.
        IdentityError: the tail is another teacher's, or its outputs for its probes differ from the stored ones.
        CacheError: the part lacks something.
    """
    record = parsed(_OfTail, about, where, "the record of a tail isn't one that kdpipe writes")
    if teacher not in (None, record.teacher):
        what = "the tail is another teacher's"
        raise IdentityError(what, where=where, found=record.teacher, allowed=teacher, do="Store the teacher's own")
    inputs, outputs = _taken(tensors, {"probe_inputs": 4, "probe_outputs": 4}, where)
    require_trusted(record.model, record.model_kwargs, trust, where)
    config = ModelConfig(**{name: getattr(record, name) for name in _BUILT_FROM})
    if not runs_code(record.model, record.model_kwargs):
        require_size(outline(lambda: build(config).module, where), tensors, where)
    with torch.random.fork_rng(devices=[]):  # weights that are overwritten cost the run none of its random numbers
        module = build(config).module
    parts: list[nn.Module | None] = []
    for name, path in (("stage", record.stage), ("norm", record.norm)):
        try:
            part = None if path is None else module.get_submodule(path)
            if part is not None:
                start = f"tail.{name}."
                part.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        except (AttributeError, RuntimeError) as e:
            what = f"the tail's tensors aren't those of {record.model}'s {path}: {str(e)[:300]}"
            raise TeacherError(what, where=where, do="Use the versions of kdpipe and timm that stored it") from e
        parts.append(part)
    stage, norm = parts
    assert stage is not None
    tail = Tail(stage, norm, shape_of(inputs), shape_of(outputs), record.channels_last)
    _require_same(tail, inputs, outputs, where, "tail")
    return tail


def load_head(tensors: Tensors, where: object) -> nn.Linear:
    """The classifier that `head_parts` took out, frozen, float32, on the CPU, tried on its probes.

    Raises:
        IdentityError: its outputs for the probes differ than is stored.
        CacheError: the part lacks something.
    """
    dimensions = {"weight": 2, "bias": 1, "probe_inputs": 2, "probe_outputs": 2}
    weight, bias, inputs, outputs = _taken(tensors, dimensions, where)
    if len(bias) != len(weight):
        do = "Copy the cache again"
        raise CacheError("the head's bias isn't that of its weight", where=where, found=len(bias), do=do)
    head = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    head.requires_grad_(False)
    _require_same(head, inputs, outputs, where, "head")
    assert isinstance(head, nn.Linear)
    return head


@torch.no_grad()
def part_outputs(part: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs of a part on the CPU, float32, a few at a time."""
    with torch.autocast("cpu", enabled=False):
        return torch.cat([part(x) for x in inputs.split(_BATCH)]).contiguous()


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite where shapes differ or one isn't finite."""
    if found.shape != expected.shape or not (found.isfinite().all() and expected.isfinite().all()):
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def shape_of(maps: torch.Tensor) -> Shape:
    """Of one of them."""
    channels, height, width = maps.shape[1:]
    return channels, height, width


def _require_same(part: nn.Module, inputs: torch.Tensor, stored: torch.Tensor, where: object, name: str) -> None:
    try:
        far = gap(part_outputs(part, inputs), stored)
    except Exception as e:  # maps of another shape than the stage's: each layer raises what it likes
        what = f"the {name} can't be run on its probes: {type(e).__name__}: {first_line(e)}"
        raise CacheError(what, where=where, do="Copy the cache again") from e
    if far > TOLERANCE:
        raise IdentityError(
            f"the {name} isn't the one that was stored: its outputs for the probes differ",
            where=where,
            found=f"{far:.2g} of the largest value",
            allowed=TOLERANCE,
            do=f"Copy the cache's {name} again, or use the versions of kdpipe and timm that stored it",
        )


def _taken(tensors: Tensors, dimensions: Mapping[str, int], where: object) -> list[torch.Tensor]:
    for name, count in dimensions.items():
        if name not in tensors:
            raise CacheError(f"the part lacks {name}", where=where, do="Copy the cache again")
        if tensors[name].ndim != count or not len(tensors[name]):
            found, allowed = tuple(tensors[name].shape), f"{count} dimensions"
            what = f"{name} has another shape than a part's"
            raise CacheError(what, where=where, found=found, allowed=allowed, do="Copy the cache again")
    return [tensors[name] for name in dimensions]
