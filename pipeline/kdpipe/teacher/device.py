"""Which devices there are, and which one is meant."""

import torch

from kdpipe.errors import TeacherError


def resolve_device(device: str) -> torch.device:
    """'auto' or a torch device name -> a device that exists here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError) as e:
        raise _unusable(device) from e
    if resolved.type == "meta":  # which has no values
        raise _unusable(device)
    return resolved


def devices_here() -> list[str]:
    """Devices of this machine, one a worker: all of CUDA's, else the CPU."""
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _unusable(device: str) -> TeacherError:
    return TeacherError(
        "device can't be used", found=device[:100], allowed="auto, cpu, or a device that torch has here"
    )
