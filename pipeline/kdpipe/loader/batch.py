"""A batch: pixels, labels and targets of the same rows."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from kdpipe.targets import Labels
from kdpipe.views import FIVE_CROP, Erased, View

_TENSORS = ("images", "labels", "rows", "views", "label_pairs", "lam")
_TARGETS = ("targets", "partner_targets")


@dataclass(frozen=True)
class Batch:
    """Rows of one training or evaluation step, as one process sees it.

    Attributes:
        images: uint8 (n, S, S, 3).
        labels: int64 (n,), -1 where there is none; of a mixed view the label with the larger share.
        rows: int64 (n,), global rows of the index.
        views: int64 (n,), view numbers; negative for evaluation views, see `view_code`.
        epoch: from 0.
        step: in the epoch, from 0.
        global_rows: rows of the whole batch, over all processes.
        global_labelled: those of them with a label.
        targets: by field name, as stored in the cache, n rows each; empty without a cache.
        erased: where `images` hold noise instead of colours; None where views aren't erased.
        label_pairs: int64 (n, 2), a row's own label and its partner's; None where nothing is mixed.
        lam: float32 (n,), the share of the first of them.
        partner_targets: like `targets`, of the partners, where the student mixes targets.
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
    erased: Erased | None = None
    label_pairs: torch.Tensor | None = None
    lam: torch.Tensor | None = None
    partner_targets: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device; places of erasing stay on the CPU, where they are needed."""

        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        tensors: dict[str, Any] = {name: moved(getattr(self, name)) for name in _TENSORS}
        fields: dict[str, Any] = {name: {n: moved(t) for n, t in getattr(self, name).items()} for name in _TARGETS}
        return replace(self, **tensors, **fields)

    @property
    def ground_truth(self) -> Labels:
        """The labels as losses take them."""
        return Labels(self.labels, self.label_pairs, self.lam)

    def __len__(self) -> int:
        return len(self.rows)


def view_code(view: View) -> int:
    """A view in a tensor: its number, or -1 for center, -2 and below for the corners."""
    return view if isinstance(view, int) else -1 - FIVE_CROP.index(view)


def join(parts: list[tuple[torch.Tensor, Batch]], pin: bool) -> Batch:
    """Put the workers' parts of one batch in place: (positions int64 (m,), part of m rows) each."""
    if len(parts) == 1:
        return parts[0][1]
    where = [p for p, _ in parts]
    model = parts[0][1]

    def place(pieces: list[torch.Tensor]) -> torch.Tensor:
        out = torch.empty((sum(map(len, where)), *pieces[0].shape[1:]), dtype=pieces[0].dtype, pin_memory=pin)
        for positions, piece in zip(where, pieces, strict=True):
            if len(positions):
                _signed(out)[positions] = _signed(piece)
        return out

    def joined(name: str) -> torch.Tensor | None:
        return None if getattr(model, name) is None else place([getattr(b, name) for _, b in parts])

    tensors: dict[str, Any] = {name: joined(name) for name in _TENSORS}
    fields: dict[str, Any] = {
        name: {n: place([getattr(b, name)[n] for _, b in parts]) for n in getattr(model, name)} for name in _TARGETS
    }
    erased = [b.erased for _, b in parts]
    if model.erased is not None:
        boxes = np.concatenate([e.boxes for e in erased if e is not None])
        tensors["erased"] = replace(model.erased, boxes=boxes[np.argsort(torch.cat(where).numpy())])
    return replace(model, **tensors, **fields)


def _signed(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes in a dtype that torch can index: it has no indexing for its wider unsigned integers."""
    same = {torch.uint16: torch.int16, torch.uint32: torch.int32}
    return tensor.view(same[tensor.dtype]) if tensor.dtype in same else tensor
