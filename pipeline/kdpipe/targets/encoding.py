"""Targets: what is kept of a teacher's outputs, and how it is read back.

Log-probabilities come from a float32 log-softmax and are quantised after it (raw fp16 logits lose a thousand
times as much). A top-k set is never renormalised: what it leaves out is spread evenly over the other classes. What
that does to a student's gradient, and what renormalising would, docs/fidelity.md shows: with k for
nearly all of the mass an even spread is nearer, with small k neither is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from kdpipe.errors import TargetsError
from kdpipe.targets.config import TargetsConfig
from kdpipe.targets.decoded import Targets
from kdpipe.targets.features import ArrayField, Calibration, Feature

if TYPE_CHECKING:
    import torch

    from kdpipe.teacher import TeacherOutput

# What is left for the tail is a difference of rounded numbers; below this it is rounding, not probability.
_LEAST_TAIL = 1e-12
GROUPS = ("logits", "pooled", "map")


@dataclass(frozen=True)
class Encoding:
    """How targets of `num_classes` classes lie in arrays. JSON-able, part of a segment's identity."""

    kind: Literal["topk", "dense", "none"]
    k: int
    dtype: Literal["float16", "float32"]
    num_classes: int
    pooled: Feature | None = None
    map: Feature | None = None

    @classmethod
    def of(
        cls, config: TargetsConfig, num_classes: int, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Encoding:
        """The encoding of a config; `k` is at most the number of classes, because its default may be more.

        Args:
            config: what to keep.
            num_classes: the teacher's.
            shapes: of the teacher's features, by name: (D,) of pooled, (h, w, D) of map. Without them an encoding
                of logits alone.

        Raises:
            TargetsError: a basis of as many components as the map has channels, or more, would make it no smaller.
        """
        k = {"dense": num_classes, "none": 0}.get(config.kind, min(config.k, num_classes))
        features: dict[str, Any] = {}
        for name in config.features:
            if shapes is None:
                continue
            shape = tuple(shapes[name])
            rank = config.map_rank if name == "map" else None
            if rank is not None and rank >= shape[-1]:
                raise TargetsError(
                    "a basis of the map has fewer components than the map has channels",
                    where="targets.map_rank",
                    found=rank,
                    allowed=f"below {shape[-1]}, the width of the teacher's map",
                    do="Leave it out to keep the map as it is",
                )
            features[name] = Feature(name, shape, getattr(config, name), rank)  # type: ignore[arg-type]
        return cls(config.kind, k, config.dtype, num_classes, **features)

    @property
    def name(self) -> str:
        """Short name used for segments: top16-float16, dense-float32+pooled-float16+map-int8-r64."""
        logits = {"dense": f"dense-{self.dtype}", "topk": f"top{self.k}-{self.dtype}"}
        return "+".join([*([logits[self.kind]] if self.kind in logits else []), *(f.label for f in self.features)])

    @property
    def nbytes(self) -> int:
        """Bytes of a view, uncompressed."""
        return sum(field.nbytes for field in self.fields())

    @property
    def dense(self) -> bool:
        """Whether the logits of all classes are there."""
        return self.k == self.num_classes

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that are kept."""
        return tuple(f for f in (self.pooled, self.map) if f is not None)

    @property
    def groups(self) -> tuple[str, ...]:
        """What is kept, of `GROUPS`."""
        return (*(("logits",) if self.kind != "none" else ()), *(f.name for f in self.features))

    def fields(self, groups: tuple[str, ...] = GROUPS) -> tuple[ArrayField, ...]:
        """The arrays of these groups, in the order in which they are written."""
        found: list[ArrayField] = list(self._logits()) if "logits" in groups else []
        for feature in self.features:
            found += feature.fields() if feature.name in groups else ()
        return tuple(found)

    def _logits(self) -> tuple[ArrayField, ...]:
        if self.kind == "none":
            return ()
        if self.kind == "dense":
            return (ArrayField("logits", (self.num_classes,), self.dtype),)
        # The largest value is no class: it marks rows that were never written.
        index = "uint8" if self.num_classes < 2**8 else "uint16" if self.num_classes < 2**16 else "uint32"
        return (
            ArrayField("index", (self.k,), index),
            ArrayField("log_prob", (self.k,), self.dtype),
            ArrayField("label_log_prob", (), self.dtype),
        )

    def dimensions(self, field: str) -> tuple[str, ...]:
        """Names of a field's trailing dimensions, for Zarr's readers."""
        last = {"logits": ("class",), "index": ("k",), "log_prob": ("k",), "label_log_prob": ()}
        if field in last:
            return last[field]
        feature = self.pooled if field.startswith("pooled") else self.map
        assert feature is not None
        names = ("y", "x")[: len(feature.shape) - 1]
        return names if field.endswith("_scale") else (*names, "component" if feature.rank else "channel")

    def json(self) -> dict[str, Any]:
        """As stored in a segment."""
        own = {"kind": self.kind, "k": self.k, "dtype": self.dtype, "num_classes": self.num_classes}
        return own | {f.name: f.json() for f in self.features}

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """From `json()`."""
        found: dict[str, Any] = dict(data)
        found |= {n: Feature.parse(n, data[n]) for n in ("pooled", "map") if n in data}
        return cls(**found)

    def encode(
        self, output: TeacherOutput, labels: torch.Tensor, calibration: Calibration | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs on N views and their labels (int64, -1 = none) -> one array a field, N rows each.

        `calibration` is that of the map, where it is kept on a basis.
        """
        import torch

        fields = {}
        if self.kind == "dense":
            fields["logits"] = output.logits.to(getattr(torch, self.dtype)).cpu().numpy()
        elif self.kind == "topk":
            fields = self._encode_top(output.logits, labels)
        for feature, x in ((self.pooled, output.pooled), (self.map, output.map)):
            if feature is not None:
                assert x is not None, f"no {feature.name} in the teacher's output"
                # Maps have their channels first, as networks do; tokens of the cache have them last.
                fields |= feature.encode(x.movedim(1, -1), calibration if feature.name == "map" else None)
        return fields

    def _encode_top(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
        import torch

        log_probs = logits.float().log_softmax(dim=1)
        top, index = log_probs.topk(self.k, dim=1)
        at_label = log_probs.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        at_label = at_label.masked_fill(labels < 0, torch.nan)
        dtype = getattr(torch, self.dtype)
        return {
            "index": index.cpu().numpy().astype(self._logits()[0].dtype),
            "log_prob": top.to(dtype).cpu().numpy(),
            "label_log_prob": at_label.to(dtype).cpu().numpy(),
        }

    def decode(self, fields: dict[str, torch.Tensor], calibration: Calibration | None = None) -> Targets:
        """Rows as read from the arrays -> Targets, on the device where they are.

        Only some groups' fields may be there; `calibration` as in `encode`.
        """
        pooled = self.pooled.decode(fields, None) if self.pooled and "pooled" in fields else None
        # Contiguous as the teacher's output is: another layout would be summed in another order.
        final = (
            self.map.decode(fields, calibration).movedim(-1, 1).contiguous() if self.map and "map" in fields else None
        )
        if "logits" in fields:
            log_probs = fields["logits"].float().log_softmax(dim=1)
            return Targets(log_probs, dense=True, pooled=pooled, map=final)
        if "log_prob" not in fields:
            return Targets(pooled=pooled, map=final)
        top = fields["log_prob"].float()
        index = fields["index"].long()
        if self.dense:
            log_probs = top.new_empty(len(top), self.num_classes)
        else:
            rest = (1 - top.exp().sum(dim=1, keepdim=True)).clamp(min=_LEAST_TAIL)
            log_probs = (rest.log() - math.log(self.num_classes - self.k)).repeat(1, self.num_classes)
        log_probs = log_probs.scatter(1, index, top)
        at_label = fields["label_log_prob"].float()
        return Targets(log_probs, at_label, self.dense, None if self.dense else index, pooled, final)
