"""Weights: reading checkpoints without executing them, and a digest of what a model really holds."""

from pathlib import Path
from typing import Any

from torch import nn

from kdpipe._util import tensors
from kdpipe.errors import TeacherError
from kdpipe.models.matching import fit
from kdpipe.models.state import METADATA_KEY, read_state, unreadable


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `kdpipe train-student` wrote about a model into its safetensors header; {} for other files.

    Checked against the header's digest; the tensors are when they are read.

    Raises:
        TeacherError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise TeacherError("weights not found", where=path, do="Check the path of --weights")
        return tensors.read_header(path, METADATA_KEY).content or {} if path.suffix == ".safetensors" else {}
    except TeacherError:
        raise
    except (OSError, ValueError) as e:
        raise unreadable(path, e) from e


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file or a weights-only pickle into `model`, strictly.

    Takes a bare state dict or one under an entry of `kdpipe.models.state.ENTRIES`, under the model's names or
    in a published layout (`kdpipe.models.converters`).

    Raises:
        TeacherError: unreadable file, or keys or shapes that don't fit; it names the first of each kind.
    """
    fit(model, read_state(path), path)


def write_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights as safetensors with a digest of them; they don't name the model.

    Raises:
        OSError, SafetensorError: they can't be written, or tensors of the model share memory.
    """
    tensors.write(path, model.state_dict(), METADATA_KEY, {})


def weights_digest(model: nn.Module) -> str:
    """Digest of every parameter and buffer, see `kdpipe._util.tensors.digest`.

    The tensors' own digest rather than a file's, so that a safetensors copy of a pickle is the same teacher.
    """
    return tensors.digest(model.state_dict())
