"""The form in which a network is run: as it was trained, or merged, and then checked against that."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from kdpipe.errors import TeacherError
from kdpipe.models import croppable, first_line, merged
from kdpipe.models.crop import crop
from kdpipe.teacher.outputs import WithFeatures
from kdpipe.teacher.tune.plan import noise, on_cpu, require_same

# What timm's `reparameterize_model` calls. A network without them isn't even copied.
_MERGES = ("fuse", "reparameterize", "switch_to_deploy")
# Views of the first batch on which forms are compared.
_ROWS = 4
_EAGER = "Pass --set teacher.form=eager"


def merge(plain: nn.Module, name: str, size: int) -> nn.Module | None:
    """The merged copy of a network, its kernels cropped; None where nothing in it can be merged or cropped.

    Args:
        plain: on the CPU, in eval mode.
        name: the model's.
        size: side of its images, always.

    Raises:
        TeacherError: a layer fails to merge.
    """
    copied = None
    if any(hasattr(module, method) for module in plain.modules() for method in _MERGES):
        try:
            copied = merged(plain)
        except Exception as e:  # the layers' own code, or a module that can't be copied
            what = f"layers can't be merged: {type(e).__name__}: {first_line(e)}"
            raise TeacherError(what, where=name, do=_EAGER) from e
        if _layout(copied) == _layout(plain):
            copied = None
    try:
        # A copy is run: some modules keep what they make at their first call, and the device is not yet the teacher's.
        too_large = croppable(deepcopy(copied or plain), torch.zeros(1, 3, size, size))
        if too_large:
            cut = copied or deepcopy(plain)
            crop(cut, too_large)
            return cut
    except Exception:  # a network that can't be copied, or can't run, which is reported when it is run
        return copied
    return copied


def check_merged(plain: WithFeatures, run: WithFeatures, x: torch.Tensor, name: str) -> None:
    """Compare the merged network with the plain one: in float32 on the CPU, on a few views and one of noise.

    Noise, because a first batch may be of one colour, which shows little about kernels.

    Args:
        plain: on the CPU.
        run: the merged one, on any device.
        x: float32 (N, 3, S, S), normalised, as `run` gets it.
        name: the model's.

    Raises:
        TeacherError: they differ by more than TOLERANCE, relative to the largest value of `plain`.
    """
    x = torch.cat([x[:_ROWS].cpu(), noise(1, x.shape[-1])])
    what = "merged, the model's output differs"
    require_same(on_cpu(run, x), on_cpu(plain, x), name, what, _EAGER, again=lambda: on_cpu(plain, x))


def _layout(module: nn.Module) -> dict[str, Any]:
    """Merging always takes parameters away or gives them other shapes."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
