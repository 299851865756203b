"""How large a network that a file describes may be: no larger than the tensors that the file holds.

It is built without memory first. A file of a kilobyte can describe a network of gigabytes, and one whose construction
never ends.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from kdpipe.errors import TeacherError
from kdpipe.models.shapes import meta

# Of one network while it is built. None of timm's has a third of it.
_MOST = {"modules": 10_000, "parameters": 6_000}
# Elements of parameters and buffers together, for each element in the file, and besides. Of a cache's last stage the
# whole network is built; buffers such as the indices of relative positions are in no file.
_RATIO, _BESIDE = 32, 2**26


def outline(make: Callable[[], nn.Module], where: object) -> nn.Module:
    """What `make` builds, on the meta device: names and shapes without memory. It draws no random number.

    All networks of timm's registry (1.0.31), and ours, can be built like that.

    Raises:
        TeacherError: it can't be built, or has more parts than any network.
    """
    with torch.random.fork_rng(devices=[]), _growing(where), meta():
        return make().eval()


def require_size(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: object) -> None:
    """Refuse an outline that is much larger than the tensors of the file which describes it.

    Raises:
        TeacherError: it is.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    found, most = sum(t.numel() for t in (*model.parameters(), *model.buffers())), _RATIO * held + _BESIDE
    if found > most:
        raise TeacherError(
            "the file describes a network that is larger than its tensors",
            where=where,
            found=f"{found} values",
            allowed=f"{most}, for the {held} in the file",
            do="Get the file from its source again",
        )


@contextmanager
def _growing(where: object) -> Iterator[None]:
    """End the construction of a network, in this thread, that gets too many parts."""
    count, thread = dict.fromkeys(_MOST, 0), threading.get_ident()

    def counted(kind: str) -> None:
        if threading.get_ident() != thread:
            return
        count[kind] += 1
        if count[kind] > _MOST[kind]:
            what = "a network of impossible size is described"
            raise TeacherError(what, where=where, found=f"{count[kind]} {kind}", allowed=f"{_MOST[kind]} at most")

    hooks = (
        register_module_module_registration_hook(lambda *_: counted("modules")),
        register_module_parameter_registration_hook(lambda *_: counted("parameters")),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
