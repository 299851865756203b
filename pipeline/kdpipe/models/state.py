"""A checkpoint file -> tensors by name, without running code from the file."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict

from kdpipe._util import tensors
from kdpipe.errors import TeacherError
from kdpipe.models import pickles

# Key of our own description in a safetensors header, so that one file says which model it belongs to.
METADATA_KEY = "kdpipe"
_NAME_LENGTH = 500
_FORMS = "a safetensors file, or a torch.save of tensors by name"
# Where training scripts put weights, in the order in which they are looked for. timm's average comes before its
# weights, as timm itself has it. In the large-kernel papers' files it is `model` whose accuracy is published.
ENTRIES = ("state_dict_ema", "state_dict", "model", "model_ema")


def read_state(path: str | Path, entry: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file, checked against its digest if it has one, or a weights-only pickle.

    Args:
        path: the file. Of a pickle's other contents only argparse.Namespace is let in, and not kept.
        entry: which entry of the file holds the weights; by default the first there is of ENTRIES, else the
            whole file.

    Raises:
        TeacherError: unreadable, damaged, no such entry, or something else than tensors by name.
    """
    path = Path(path)
    content = _read(path)
    weights = _entry(content, entry, path) if isinstance(content, dict) else content
    if not (isinstance(weights, dict) and all(map(_is_name, weights))):
        raise _nothing_named(weights, path)
    state: dict[str, Any] = clean_state_dict(weights)
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
    _check_room(state, path)
    return state


def _read(path: Path) -> Any:
    try:
        if not path.is_file():
            raise TeacherError("weights not found", where=path, do="Check the path of --weights")
        if path.suffix == ".safetensors":
            return tensors.read(path, METADATA_KEY)[0]
        if not pickles.check(path):
            tensors.remark_unchecked(path)
        # Mapped, so that an optimizer's state beside the weights is never in memory.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=pickles.is_zip(path))
    except TeacherError:
        raise
    except pickles.ForeignCode as e:
        raise TeacherError(
            f"weights can't be read without running code from the file: {e}",
            where=path,
            allowed=_FORMS,
            do="Where the file can be trusted, load the model there and save model.state_dict() alone, "
            "with safetensors or torch.save",
        ) from e
    except Exception as e:  # PyTorch's reader raises what it likes on a damaged file
        raise unreadable(path, e) from e


def unreadable(path: Path, error: Exception) -> TeacherError:
    """The one line for a file of weights that raised this when it was read."""
    if isinstance(error, OSError):
        do = "Mend the permission or the disk"
        return TeacherError(f"weights can't be read: {error.strerror or error}", where=path, do=do)
    # What PyTorch adds to an error of its unpickler is advice to run the file's code.
    known = isinstance(error, ValueError) or (isinstance(error, RuntimeError) and "weights_only" not in str(error))
    reason = str(error).split("\n", maxsplit=1)[0][:300] if known else f"PyTorch can't load it ({type(error).__name__})"
    return TeacherError(f"weights can't be read: {reason}", where=path, allowed=_FORMS, do="Copy the file again")


def _is_name(key: Any) -> bool:
    """Names stand in messages."""
    return isinstance(key, str) and len(key) <= _NAME_LENGTH and key.isprintable()


def _nothing_named(weights: Any, path: Path) -> TeacherError:
    kind = "other keys than names" if isinstance(weights, dict) else f"an object of type {type(weights).__name__}"
    what = f"the file holds no weights by name but {kind}"
    return TeacherError(what, where=path, allowed=_FORMS, do="Save model.state_dict()")


def _check_room(state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors that are larger than the file: shapes decide how large a model is made for them."""
    size = path.stat().st_size
    for key, tensor in state.items():
        if math.prod(max(1, side) for side in tensor.shape) * tensor.element_size() > size:
            raise TeacherError(
                f"the file is too small for its tensor {key!r}",
                where=path,
                found=f"shape {tuple(tensor.shape)} in {size} bytes",
                do="Copy the file again, or save contiguous tensors",
            )


def _entry(content: Any, entry: str | None, path: str | Path) -> Any:
    if entry is None:
        found = next((name for name in ENTRIES if content.get(name) is not None), None)
        return content if found is None else content[found]
    if content.get(entry) is None:
        named = [str(key) for key, value in content.items() if isinstance(value, dict)]
        raise TeacherError(
            "the file has no such entry",
            where=path,
            found=entry,
            allowed=", ".join(named)[:300] or "no entry: the weights lie bare",
            do="Check checkpoint_key",
        )
    return content[entry]
