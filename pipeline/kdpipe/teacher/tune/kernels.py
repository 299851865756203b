"""Other ways to compute a layer of a frozen network: the same function by other operations, for speed alone.

Which is the fastest depends on the device, the shapes and the libraries; `search` measures it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kdpipe.models import Cropped, Shape
from kdpipe.teacher.tune.toeplitz import FullBand, StripeBand

# Depthwise kernels up to this side are what every library is made for; only beyond it others may win.
_ORDINARY = 7
# A matrix of a layer may be larger than its kernels, but not by as much as it likes.
_MATRIX_BYTES = 2**27


class Kernel(nn.Module):
    """A layer computed in another way.

    Args:
        original: the layer.
        shape: of its input.

    Raises:
        ValueError: in forward, for an input of another size: some ways hold for one size only.
    """

    def __init__(self, original: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.original = original
        self.size = tuple(shape[1:])

    def __getattr__(self, name: str) -> Any:
        """The layer's own attributes too: a network may look at its weight or its sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)

    def require(self, x: torch.Tensor) -> None:
        """Refuse another size."""
        if tuple(x.shape[1:]) != self.size:
            raise ValueError(f"made for maps of {self.size}, not {tuple(x.shape[1:])}")


class _Formatted(Kernel):
    """A depthwise convolution on a copy of its input in another memory format; the output is as the input was."""

    memory_format: torch.memory_format

    def __init__(self, original: nn.Conv2d, shape: Shape) -> None:
        super().__init__(original, shape)
        # A weight (C, 1, h, w) may be in both formats at once, and what torch then takes depends on its strides.
        weight = torch.empty(original.weight.shape, dtype=original.weight.dtype, device=original.weight.device)
        weight = weight.to(memory_format=self.memory_format).copy_(original.weight.detach())
        self.kernel = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        assert isinstance(self.original, nn.Conv2d)
        y = self.original._conv_forward(x.contiguous(memory_format=self.memory_format), self.kernel, self.original.bias)
        return y.contiguous(memory_format=_format_of(x))


class Contiguous(_Formatted):
    """On a map whose channels lie apart (NCHW), where CUDA has its own direct kernels."""

    memory_format = torch.contiguous_format


class ChannelsLast(_Formatted):
    """On a map whose channels lie together (NHWC)."""

    memory_format = torch.channels_last


class ToeplitzKernel(Kernel):
    """A depthwise convolution as a product with a Toeplitz matrix, which matrix units compute."""

    def __init__(self, original: nn.Conv2d, shape: Shape) -> None:
        super().__init__(original, shape)
        kind = FullBand if min(_sides(original)) > _ORDINARY else StripeBand
        self.band = kind(original, shape[2], shape[3])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        self.require(x)
        return self.band(x).contiguous(memory_format=_format_of(x))


class TransposedKernel(Kernel):
    """A depthwise convolution on its transposed map, contiguous: where level stripes are slower than upright ones."""

    def __init__(self, original: nn.Conv2d, shape: Shape) -> None:
        super().__init__(original, shape)
        self.kernel = nn.Parameter(original.weight.detach().transpose(2, 3).contiguous(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in and out."""
        assert isinstance(self.original, nn.Conv2d)
        rows, columns = _sides(self.original)
        turned, padding = x.transpose(2, 3).contiguous(), (columns // 2, rows // 2)
        y = nn.functional.conv2d(turned, self.kernel, self.original.bias, padding=padding, groups=self.original.groups)
        return y.transpose(2, 3).contiguous(memory_format=_format_of(x))


class PointwiseKernel(Kernel):
    """A linear layer as a 1 x 1 convolution, on the same numbers in the same place, also the weights'."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ..., in_features) -> (N, ..., out_features)."""
        assert isinstance(self.original, nn.Linear)
        # One tall map, whatever the images: faster than many small ones.
        tall = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        y = nn.functional.conv2d(tall, self.original.weight[:, :, None, None], self.original.bias)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])


WAYS: dict[str, Callable[..., Kernel]] = {
    "contiguous": Contiguous,
    "channels_last": ChannelsLast,
    "turned": TransposedKernel,
    "banded": ToeplitzKernel,
    "convolved": PointwiseKernel,
}


def ways_of(module: nn.Module, shape: Shape, channels_last: bool) -> tuple[str, ...]:
    """Names of the ways, beside the original one, that can compute a layer whose input has this shape.

    Args:
        module: the layer.
        shape: of its input; the batch comes first.
        channels_last: whether the network runs in this format.
    """
    if type(module) is nn.Linear and len(shape) >= 3:
        return ("convolved",)
    if len(shape) != 4:
        return ()
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, Cropped) or not is_large(module):
        return ()
    height, width = _sides(module)
    others = ["contiguous" if channels_last else "channels_last"]
    if width > height:
        others.append("turned")
    if _matrix_bytes(module, shape) <= _MATRIX_BYTES:
        others.append("banded")
    return tuple(others)


def is_large(conv: nn.Conv2d) -> bool:
    """A depthwise convolution with a kernel that is large on one side at least, and keeps the map's size."""
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and max(_sides(conv)) > _ORDINARY
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding == tuple(side // 2 for side in _sides(conv))
        and conv.padding_mode == "zeros"
        and all(side % 2 for side in _sides(conv))
    )


def _sides(conv: nn.Conv2d) -> tuple[int, int]:
    height, width = conv.kernel_size
    return height, width


def _matrix_bytes(conv: nn.Conv2d, shape: Shape) -> int:
    (_, channels, height, width), sides = shape, _sides(conv)
    if min(sides) > _ORDINARY:
        return 4 * channels * (height * width) ** 2
    return 4 * channels * min(sides) * (height if sides[0] >= sides[1] else width) ** 2


def _format_of(x: torch.Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
