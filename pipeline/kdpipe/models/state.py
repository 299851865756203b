"""A checkpoint file -> tensors by name, without running code from the file."""

import math
from collections import OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from kdpipe._util import tensors
from kdpipe.errors import TeacherError
from kdpipe.models import pickles
from kdpipe.models.prefixes import under, unwrapped
from kdpipe.models.stubs import Stub, stubs, tensor_of

# Key of our own description in a safetensors header, so that the file names the model it belongs to.
METADATA_KEY = "kdpipe"
_NAME_LENGTH = 500
_FORMS = "a safetensors file, or a torch.save of tensors by name"
# Where training scripts put weights, in the order in which they are looked for. timm's average comes before its
# weights, as timm itself has it. In the large-kernel papers' files it is `model` whose accuracy is published.
ENTRIES = (
    *("state_dict_ema", "state_dict", "model", "model_ema", "model_state_dict", "model_state"),
    *("params_ema", "params", "ema", "net", "network", "module", "weights"),
)
# Dictionaries in dictionaries, as {"ema": {"state_dict": ...}}.
_DEEPEST = 3
# Values of each dictionary that are looked at for tensors.
_LOOKED_AT = 1000


def read_state(path: str | Path, entry: str | None = None, prefix: str | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file, checked against its digest if it has one, or a weights-only pickle.

    Args:
        path: the file. Nothing in it is executed; what a pickle holds beside tensors and plain values is not kept.
        entry: which entry of the file holds the weights; by default the first there is of ENTRIES, the only
            dictionary of tensors, or the whole file.
        prefix: only the names that begin with it, which are given without; by default all, without the components
            that DistributedDataParallel, torch.compile and FSDP add.

    Raises:
        TeacherError: unreadable, damaged, no such entry, or something else than tensors by name.
    """
    path = Path(path)
    content = _read(path)
    weights = _weights(content, entry, path)
    if not (isinstance(weights, dict) and all(map(_is_name, weights))):
        raise _nothing_named(weights, content, path)
    state = {key: tensor_of(value) for key, value in weights.items()}
    other = [(key, value) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        key, value = other[0]
        raise TeacherError(
            f"the file holds something else than weights ({len(other)} of {len(state)} entries)",
            where=path,
            found=f"{_kind(value)} under {key!r}",
            allowed="tensors by name, bare or under state_dict or model",
            do=_choose(content) or "Save model.state_dict()",
        )
    _check_room(state, path)
    return unwrapped(state) if prefix is None else under(state, prefix, path)


def _read(path: Path) -> Any:
    try:
        if not path.is_file():
            raise TeacherError("weights not found", where=path, do="Check the path of --weights")
        if path.suffix == ".safetensors":
            return tensors.read(path, METADATA_KEY)[0]
        content = pickles.check(path)
        if not content.checked:
            tensors.remark_unchecked(path)
        # Mapped, so that an optimizer's state beside the weights is never in memory.
        with torch.serialization.safe_globals(stubs(content.stubbed)):
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
        do = "Correct the permission or the disk"
        return TeacherError(f"weights can't be read: {error.strerror or error}", where=path, do=do)
    # What PyTorch adds to an error of its unpickler is advice to run the file's code.
    known = isinstance(error, ValueError) or (isinstance(error, RuntimeError) and "weights_only" not in str(error))
    reason = str(error).split("\n", maxsplit=1)[0][:300] if known else f"PyTorch can't load it ({type(error).__name__})"
    return TeacherError(f"weights can't be read: {reason}", where=path, allowed=_FORMS, do="Copy the file again")


def _is_name(key: Any) -> bool:
    """Names stand in messages."""
    return isinstance(key, str) and len(key) <= _NAME_LENGTH and key.isprintable()


def _kind(value: Any) -> str:
    name = type(value).__name__[:100]
    return f"an object of the class {name}" if isinstance(value, Stub) else name


def _nothing_named(weights: Any, content: Any, path: Path) -> TeacherError:
    if isinstance(weights, dict):
        kind = "other keys than names"
    elif isinstance(weights, Stub):
        kind = f"{_kind(weights)}, such as a whole model"
    else:
        kind = f"an object of type {_kind(weights)}"
    what = f"the file holds no weights by name but {kind}"
    return TeacherError(what, where=path, allowed=_FORMS, do=_choose(content) or "Save model.state_dict()")


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


def _weights(content: Any, entry: str | None, path: Path) -> Any:
    """What lies under the entry; or the file's weights, however deep."""
    weights = _plain(content)
    if entry is not None:
        if not isinstance(weights, dict) or weights.get(entry) is None:
            found = ", ".join(_entries(weights))[:300]
            allowed = found or "no entry: the weights are at the top level"
            do = "Check --checkpoint-key"
            raise TeacherError("the file has no such entry", where=path, found=entry, allowed=allowed, do=do)
        weights = _plain(weights[entry])
    for _ in range(_DEEPEST):
        inner = _inner(weights)
        if inner is None:
            break
        others = [key for key in _entries(weights) if key != inner]
        if others:
            tensors.remark(path, f"weights under {inner!r} are taken; --checkpoint-key takes {', '.join(others)[:200]}")
        weights = _plain(weights[inner])
    return weights


def _inner(weights: Any) -> str | None:
    """The key of the weights in this dictionary; None where they are at the top level, or it isn't known."""
    if not isinstance(weights, dict):
        return None
    for name in ENTRIES:
        if weights.get(name) is not None and not isinstance(tensor_of(weights[name]), torch.Tensor):
            return name
    found = _entries(weights)
    bare = any(isinstance(value, torch.Tensor) for value in weights.values())
    return found[0] if len(found) == 1 and not bare else None


def _entries(content: Any) -> list[str]:
    """Keys under which tensors by name lie."""
    if not isinstance(content, dict):
        return []
    items = islice(content.items(), _LOOKED_AT)
    return [key for key, value in items if _is_name(key) and isinstance(value, dict) and _holds_tensors(value)]


def _holds_tensors(value: dict[Any, Any]) -> bool:
    items = [*islice(_plain(value).items(), _LOOKED_AT)]
    return all(_is_name(k) for k, _ in items) and any(isinstance(tensor_of(v), torch.Tensor) for _, v in items)


def _choose(content: Any) -> str | None:
    found = ", ".join(_entries(_plain(content)))[:300]
    return f"Pass --checkpoint-key: {found}" if found else None


def _plain(content: Any) -> Any:
    """A file may give an OrderedDict attributes in the place of its methods."""
    return dict(OrderedDict.items(content)) if isinstance(content, OrderedDict) else content
