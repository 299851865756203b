"""A batch: pixels, labels and targets of the same rows."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Batch:
    """Rows of one training or evaluation step, as one process sees it.

    Attributes:
        images: uint8 (n, S, S, 3).
        labels: int64 (n,), -1 where there is none.
        rows: int64 (n,), global rows of the index.
        views: int64 (n,), view numbers, -1 for the `center` view.
        targets: by field name, as stored in the cache, n rows each; empty without a cache.
        epoch: from 0.
        step: in the epoch, from 0.
        global_rows: rows of the whole batch, over all processes.
        global_labelled: those of them with a label.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    views: torch.Tensor
    epoch: int
    step: int
    global_rows: int
    global_labelled: int
    targets: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("images", "labels", "rows", "views")
        }
        targets = {name: t.to(device, non_blocking=non_blocking) for name, t in self.targets.items()}
        return replace(self, targets=targets, **moved)

    def __len__(self) -> int:
        return len(self.rows)


def join(parts: list[tuple[torch.Tensor, Batch]], pin: bool) -> Batch:
    """Put the workers' parts of one batch in place: (positions int64 (m,), part of m rows) each.

    Parts without rows are welcome; at least one must have some, unless the whole batch is empty.
    """
    if len(parts) == 1:
        return parts[0][1]
    positions = torch.cat([p for p, _ in parts])
    model = next((b for _, b in parts if len(b)), parts[0][1])

    def place(pieces: list[torch.Tensor]) -> torch.Tensor:
        out = torch.empty((len(positions), *pieces[0].shape[1:]), dtype=pieces[0].dtype, pin_memory=pin)
        for (where, _), piece in zip(parts, pieces, strict=True):
            if len(where):
                _signed(out)[where] = _signed(piece)
        return out

    names = ("images", "labels", "rows", "views")
    joined: dict[str, Any] = {name: place([getattr(b, name) for _, b in parts]) for name in names}
    targets = {name: place([b.targets[name] for _, b in parts]) for name in model.targets}
    return replace(model, targets=targets, **joined)


def _signed(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes in a dtype that torch can index: it has no indexing for its wider unsigned integers."""
    same = {torch.uint16: torch.int16, torch.uint32: torch.int32}
    return tensor.view(same[tensor.dtype]) if tensor.dtype in same else tensor
