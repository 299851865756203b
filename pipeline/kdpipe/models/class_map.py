"""A teacher of many classes for a task of fewer: which rows of its classifier are kept, in the task's order."""

from pathlib import Path

import torch
from torch import nn

from kdpipe._util.untrusted import load_json
from kdpipe.errors import TeacherError

_BYTES, _ROWS = 2**23, 2**20


def read_class_map(path: str | Path) -> list[int]:
    """Read a JSON list of numbers, or a text of one number a line; number i is class i's row of the classifier.

    Raises:
        TeacherError: missing, empty, or something else than whole numbers from 0 on.
    """
    try:
        if not Path(path).is_file():
            raise FileNotFoundError("No such file")
        with Path(path).open("rb") as file:
            data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            raise ValueError(f"larger than {_BYTES} bytes")
        text = data.decode()
        rows = load_json(text) if text.lstrip().startswith("[") else _numbers(text)
    except OSError as e:
        raise TeacherError(f"class map can't be read: {e}", where=path, do="Check the path of the class map") from e
    except ValueError as e:
        raise TeacherError(f"class map can't be read: {str(e)[:200]}", where=path, allowed=_ALLOWED) from e
    if not rows:
        raise TeacherError("class map is empty", where=path, allowed=_ALLOWED)
    if len(rows) > _ROWS:
        raise TeacherError("class map has too many classes", where=path, found=len(rows), allowed=_ROWS)
    for i, row in enumerate(rows):
        if type(row) is not int or row < 0:
            what, found = f"class map: class {i} has no row of the classifier", str(row)[:100]
            raise TeacherError(what, where=path, found=found, allowed=_ALLOWED)
    return list(rows)


def _numbers(text: str) -> list[int]:
    return [int(line) for line in text.split("\n") if line.strip()]


_ALLOWED = "one whole number from 0 on a class: a JSON list, or a text of one a line"


def take_classes(state: dict[str, torch.Tensor], model: nn.Module, rows: list[int], where: str | Path) -> None:
    """Keep of the classifier in `state`, in place, the rows of the class map.

    Args:
        state: under the model's names; weight (R, D) and bias (R,) of each classifier become (len(rows), D).
        model: timm's, which names its classifier.
        where: for messages.

    Raises:
        TeacherError: no classifier, or a row that it hasn't.
    """
    found = [key for key in classifier_keys(model) if key in state]
    if not found:
        raise TeacherError("a class map needs weights with a classifier", where=where, do="Leave the class map away")
    for key in found:
        if max(rows) >= len(state[key]):
            raise TeacherError(
                f"the class map names a row that the classifier {key} hasn't (class {rows.index(max(rows))})",
                where=where,
                found=max(rows),
                allowed=f"0 to {len(state[key]) - 1}",
                do="Is the class map of these weights?",
            )
        state[key] = state[key][rows]


def keep_classes(model: nn.Module, rows: list[int], where: str) -> None:
    """Give a model that has its weights, in place, a classifier of the class map's rows of its own.

    Raises:
        TeacherError: as `take_classes`.
    """
    state = dict(model.state_dict())
    take_classes(state, model, rows, where)
    model.reset_classifier(len(rows))  # type: ignore[operator]
    model.load_state_dict(state)


def classifier_keys(model: nn.Module) -> list[str]:
    """Names of the classifier's tensors, as timm's pretrained_cfg has them; none for a model without."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return [f"{name}.{part}" for name in ([names] if isinstance(names, str) else names) for part in ("weight", "bias")]
