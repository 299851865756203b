"""Weights: reading checkpoints without executing them, and a digest of what a model really holds."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import nn

from pipeline.errors import TeacherError

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

    Accepts what timm's `load_state_dict` accepts: a bare state dict or one under `state_dict`, `model`,
    `state_dict_ema` or `model_ema`, of which the average is preferred.

    Raises:
        TeacherError: unreadable file, or keys or shapes that don't fit; it names the first of each kind.
    """
    try:
        state = load_state_dict(str(path), use_ema=True, weights_only=True)
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        # What timm does with a file that holds something else than a dict, or has a number for a key.
        AttributeError,
        TypeError,
        pickle.UnpicklingError,
    ) as e:
        reason = str(e).split("\n", maxsplit=1)[0][:200]
        raise TeacherError(
            f"weights can't be read without running code from the file: {reason}",
            where=path,
            allowed="a safetensors file, or a torch.save of tensors",
            do="Re-save the weights, or copy the file again",
        ) from e
    other = [(key, value) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        key, value = other[0]
        raise TeacherError(
            f"the file holds something else than weights ({len(other)} of {len(state)} entries)",
            where=path,
            found=f"{type(value).__name__} under {key!r}",
            allowed="tensors by name, bare or under state_dict or model",
            do="Save model.state_dict()",
        )
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if state[k].shape != own[k].shape
        ],
    }
    if any(problems.values()):
        said = ", ".join(f"{len(v)} {kind} (first: {v[0]})" for kind, v in problems.items() if v)
        raise TeacherError(
            f"weights don't fit the model {type(model).__name__}: {said}",
            where=path,
            do="Check the model's name, --model-kwargs and the number of classes",
        )
    model.load_state_dict(state)


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
