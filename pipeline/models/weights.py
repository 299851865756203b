"""Weights: reading checkpoints without executing them, and a digest of what a model really holds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.errors import TeacherError
from pipeline.models.fit import fit
from pipeline.models.state import read_state

# Key of our own description in a safetensors header, so that one file says which model it belongs to.
METADATA_KEY = "kdpipe"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `kdpipe train-student` wrote about a model into its safetensors header; {} for other files.

    Raises:
        TeacherError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise FileNotFoundError
        if path.suffix != ".safetensors":
            return {}
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except FileNotFoundError as e:
        raise TeacherError("weights not found", where=path, do="Check the path of --weights") from e
    except PermissionError as e:
        raise TeacherError(f"weights can't be read: {e.strerror}", where=path, do="Mend the permission") from e
    except (SafetensorError, OSError, ValueError) as e:
        raise TeacherError(f"weights can't be read: {e}", where=path, do="Copy the file again") from e


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file or a weights-only pickle into `model`, strictly.

    Takes a bare state dict or one under an entry of `pipeline.models.state.ENTRIES`, under the model's names or
    in a published layout (`pipeline.models.published`).

    Raises:
        TeacherError: unreadable file, or keys or shapes that don't fit; it names the first of each kind.
    """
    fit(model, read_state(path), path)


def weights_digest(model: nn.Module) -> str:
    """Hex sha256 over every parameter and buffer (name, dtype, shape, bytes) in the order of their names.

    The tensors' own digest rather than a file's, so that a safetensors copy of a pickle is the same teacher.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
