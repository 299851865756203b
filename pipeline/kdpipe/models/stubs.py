"""Stand-ins for the unknown classes of a checkpoint: objects that do nothing; numpy's arrays become tensors."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_SCALARS = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class Stub:
    """An object of a class that wasn't imported. Subclasses have the full name of theirs.

    Attributes:
        arguments: with which the pickle makes it.
        state: that the pickle gives it, or None.
    """

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Any:
        """Keep the arguments, whatever they are."""
        made = object.__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DictStub(Stub):
    """Of a subclass of dict: PyTorch sets items of an exact OrderedDict only."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _ListStub(Stub):
    def __new__(cls, *_: Any) -> Any:
        return []


_BASES = {"object": Stub, "dict": _DictStub, "list": _ListStub}


def stubs(classes: Mapping[str, str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For `torch.serialization.safe_globals`: a class for each name, by what its instances are used as."""
    return [(type(name, (_BASES[kind],), {}), name) for name, kind in classes.items()]


def tensor_of(value: Any) -> Any:
    """The tensor of a numpy array or scalar of numbers that stubs stand for; anything else as it is."""
    name = type(value).__name__
    if not isinstance(value, Stub) or name not in _ARRAYS | _SCALARS:
        return value
    try:
        if name in _SCALARS:
            dtype, data, shape, fortran = *value.arguments, (), False
        else:
            _, shape, dtype, fortran, data = value.state
        code, order = dtype.arguments[0], dtype.state[1]
        if code not in _DTYPES or order not in ("<", ">", "|"):
            return value
        array = np.frombuffer(data, order + code).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError):
        return value  # damaged, and then refused as no tensor
