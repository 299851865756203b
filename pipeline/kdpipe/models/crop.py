"""Kernels cut to what their map can use: taps that always lie on the padding multiply nothing but zeros."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

Shape = tuple[int, ...]


class Cropped(nn.Conv2d):
    """A convolution whose kernel was cut for maps of at most `size` (height, width)."""

    size: tuple[int, int]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As Conv2d.

        Raises:
            ValueError: a larger map, where the missing taps would be needed.
        """
        if input.shape[-2] > self.size[0] or input.shape[-1] > self.size[1]:
            raise ValueError(f"kernels were cropped for maps of {self.size}, not {tuple(input.shape[-2:])}")
        return super().forward(input)


class Seen(NamedTuple):
    """What a module got as its first input: the largest shape, axis by axis; `varied` where there were several."""

    shape: Shape
    dtype: torch.dtype
    varied: bool


def inputs_seen(model: nn.Module, x: torch.Tensor) -> dict[str, Seen]:
    """The inputs of a network's modules by name, found by running it on `x`; of those that got tensors."""
    seen: dict[str, Seen] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...]) -> None:
            if not (args and isinstance(args[0], torch.Tensor)):
                return
            now = Seen(tuple(args[0].shape), args[0].dtype, False)
            before = seen.get(name, now)
            largest = tuple(map(max, zip(before.shape, now.shape, strict=False)))
            seen[name] = Seen(largest, now.dtype, before.varied or before != now)

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        with torch.inference_mode():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def croppable(model: nn.Module, x: torch.Tensor) -> dict[str, Shape]:
    """Input shapes of the convolutions whose kernels are larger than can be used on images as large as `x`.

    A kernel side of more than 2n - 1 taps on a map of n pixels reaches beyond it from every pixel.
    """
    if not any(_is_even(module) for module in model.modules()):
        return {}
    found: dict[str, Shape] = {}
    for name, seen in inputs_seen(model, x).items():
        conv = model.get_submodule(name)
        if not (name and isinstance(conv, nn.Conv2d) and _is_even(conv) and len(seen.shape) == 4):
            continue
        if _sides(conv, seen.shape) != conv.kernel_size:
            found[name] = seen.shape
    return found


def crop(model: nn.Module, shapes: dict[str, Shape]) -> None:
    """Cut kernels, in place, of a network that is only run on images of one size; `shapes` as `croppable` returns."""
    for name, shape in shapes.items():
        parent, _, last = name.rpartition(".")
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        setattr(model.get_submodule(parent), last, _cropped(conv, _sides(conv, shape), (shape[2], shape[3])))


def _sides(conv: nn.Conv2d, shape: Shape) -> tuple[int, int]:
    return min(conv.kernel_size[0], 2 * shape[2] - 1), min(conv.kernel_size[1], 2 * shape[3] - 1)


def _is_even(conv: nn.Module) -> bool:
    """Whether it is a convolution whose every output pixel sees as far to each side, and zeros beyond the map."""
    return (
        type(conv) is nn.Conv2d
        and max(conv.kernel_size) > 1
        and all(side % 2 for side in conv.kernel_size)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == tuple(side // 2 for side in conv.kernel_size)
        and conv.padding_mode == "zeros"
    )


def _cropped(conv: nn.Conv2d, sides: tuple[int, int], size: tuple[int, int]) -> Cropped:
    made = nn.utils.skip_init(
        Cropped,
        conv.in_channels,
        conv.out_channels,
        sides,
        padding=tuple(side // 2 for side in sides),
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    assert isinstance(made, Cropped)
    made.size = size
    top, left = ((old - new) // 2 for old, new in zip(conv.kernel_size, sides, strict=True))
    with torch.no_grad():
        made.weight.copy_(conv.weight[..., top : top + sides[0], left : left + sides[1]])
        if conv.bias is not None and made.bias is not None:
            made.bias.copy_(conv.bias)
    return made.requires_grad_(conv.weight.requires_grad)
