"""The form in which a network is run: as it was trained, or merged, and then checked against that."""

from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call

from pipeline.errors import TeacherError
from pipeline.models import first_line, merged

Form = Literal["eager", "merged"]

# What timm's `reparameterize_model` calls. A network without them isn't even copied.
_MERGES = ("fuse", "reparameterize", "switch_to_deploy")
# Largest difference of two forms, relative to the largest logit, float32.
TOLERANCE = 1e-5
# Views of the first batch on which forms are compared: it is done on the CPU, where float32 is float32.
_ROWS = 4
_EAGER = "Pass --set teacher.form=eager"


def merge(plain: nn.Module, name: str) -> nn.Module | None:
    """The merged copy of a network; None where nothing in it can be merged.

    Raises:
        TeacherError: a layer fails to merge.
    """
    if not any(hasattr(module, method) for module in plain.modules() for method in _MERGES):
        return None
    try:
        copied = merged(plain)
    except Exception as e:  # the layers' own code, or a module that can't be copied
        raise TeacherError(f"layers can't be merged: {type(e).__name__}: {first_line(e)}", where=name, do=_EAGER) from e
    return None if _layout(copied) == _layout(plain) else copied


def check_merged(plain: nn.Module, run: nn.Module, x: torch.Tensor, name: str) -> None:
    """Compare the merged network with the plain one: in float32 on the CPU, on a few views and one of noise.

    Noise, because a first batch may be of one colour, which tells little about kernels.

    Args:
        plain: on the CPU.
        run: the merged one, on any device.
        x: float32 (N, 3, S, S), normalised, as `run` gets it.
        name: the model's.

    Raises:
        TeacherError: they differ by more than TOLERANCE, relative to the largest value of `plain`.
    """
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    x = torch.cat([x[:_ROWS].cpu(), noise])
    # Its tensors on the CPU; those that are there already aren't copied.
    here = {key: value.cpu() for key, value in [*run.named_parameters(), *run.named_buffers()]}
    with torch.autocast("cpu", enabled=False):
        expected, found = plain(x), functional_call(run, here, (x,))
    # What isn't finite in either form is refused by whoever keeps it.
    finite = expected.isfinite()
    gap = (found - expected)[finite].abs()
    most = expected[finite].abs().max() if finite.any() else torch.tensor(0.0)
    if not bool((gap <= TOLERANCE * most).all()):
        raise TeacherError(
            "merged, the model says something else",
            where=name,
            found=f"{float(gap.max() / most):.2g} of the largest logit",
            allowed=TOLERANCE,
            do=_EAGER,
        )


def _layout(module: nn.Module) -> dict[str, Any]:
    """Merging always takes parameters away or gives them other shapes."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
