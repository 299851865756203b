"""A checkpoint file -> tensors by name, without running code from the file."""

import argparse
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict

from pipeline.errors import TeacherError

# Where training scripts put weights, in the order in which they are looked for. timm's average comes before its
# weights, as timm itself has it. In the large-kernel papers' files it is `model` whose accuracy is published.
ENTRIES = ("state_dict_ema", "state_dict", "model", "model_ema")


def read_state(path: str | Path, entry: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file or a weights-only pickle.

    Args:
        path: the file. Of a pickle's other contents only argparse.Namespace is let in, and not kept.
        entry: which entry of the file holds the weights; by default the first there is of ENTRIES, else the
            whole file.

    Raises:
        TeacherError: unreadable, no such entry, or something else than tensors by name.
    """
    try:
        content = _read(Path(path))
        weights = _entry(content, entry, path)
        state = clean_state_dict(weights)
    except TeacherError:
        raise
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        # A file that holds something else than a dict, or has a number for a key.
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
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path.name}")
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        # Mapped, so that an optimizer's state beside the weights is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


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
            allowed=", ".join(named) or "no entry: the weights lie bare",
            do="Check checkpoint_key",
        )
    return content[entry]
