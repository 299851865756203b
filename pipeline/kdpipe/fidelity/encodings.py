"""The encodings that are compared, and the targets that each of them gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdpipe.estimate.candidates import KS
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.estimate.sizes import Sizes
from kdpipe.fidelity.setup import Setup, TeacherBatch
from kdpipe.losses.target_class import with_label
from kdpipe.targets import Encoding, Targets, TargetsConfig

_USUAL = 16


@dataclass(frozen=True)
class EncodingCase:
    """One encoding of one kind of targets; the other kinds are exact.

    Attributes:
        kind: logits, pooled or map.
        by_head: pooled features, from which the teacher's classifier computes all logits.
    """

    kind: str
    encoding: Encoding
    by_head: bool = False

    @property
    def name(self) -> str:
        """As in a report: top16-float16, pooled-int8+head, map-int8-r64."""
        return self.encoding.name + ("+head" if self.by_head else "")

    @property
    def top(self) -> bool:
        """Whether it has only some classes."""
        return self.kind == "logits" and not self.by_head and not self.encoding.dense

    def targets(self, setup: Setup, shown: TeacherBatch) -> Targets:
        """This kind encoded and decoded, the others exact."""
        encoding, exact = self.encoding, shown.exact
        basis = None if encoding.map is None else setup.basis_of(encoding.map.rank)
        fields = encoding.encode(shown.output, shown.batch.labels, basis)
        read = encoding.decode({name: torch.from_numpy(array) for name, array in fields.items()}, basis)
        if self.by_head:
            assert setup.info.head is not None
            with torch.no_grad():
                return replace(exact, log_probs=torch.log_softmax(setup.info.head(read.pooled), dim=1))
        if self.kind == "logits":
            return replace(read, pooled=exact.pooled, map=exact.map)
        return replace(exact, **{self.kind: getattr(read, self.kind)})


def encoding_cases(setup: Setup) -> list[EncodingCase]:
    """Top k for each k that is smaller than the classes, all logits, and the features, smallest first."""
    info = setup.info
    shapes: dict[str, tuple[int, ...]] = {"pooled": (info.pooled,)} if info.pooled else {}
    if info.map is not None:
        shapes["map"] = (*info.map[1:], info.map[0])

    def case(what: str, by_head: bool = False, **config: Any) -> EncodingCase:
        return EncodingCase(what, Encoding.of(TargetsConfig(**config), info.num_classes, shapes), by_head)

    ks = [k for k in KS if k < info.num_classes]
    found = [case("logits", k=k) for k in ks]
    # One is enough to see that k causes the error, and not float16.
    found += [case("logits", k=k, dtype="float32") for k in ks if k == min(_USUAL, ks[-1])]
    found += [case("logits", kind="dense", dtype=dtype) for dtype in ("float16", "float32")]
    for dtype in ("int8", "float16", "float32") if info.pooled else ():
        found.append(case("pooled", kind="none", pooled=dtype))
        if info.head is not None:
            found.append(case("logits", by_head=True, kind="none", pooled=dtype))
    for dtype in ("int8", "float16") if info.map else ():
        found += [case("map", kind="none", map=dtype, map_rank=rank) for rank in setup.ranks]
    found += [case("map", kind="none", map=dtype) for dtype in ("int8", "float16", "float32") if info.map]
    return found


def with_all_classes(targets: Targets, labels: torch.Tensor) -> Targets:
    """Top-k targets as if they had all classes, for a loss that otherwise refuses them."""
    log_probs = with_label(targets, labels)
    return replace(targets, log_probs=log_probs, label_log_prob=None, dense=True, index=None)


def bytes_per_view(
    cases: Sequence[EncodingCase], setup: Setup, batches: Sequence[TeacherBatch]
) -> dict[str, dict[str, float]]:
    """By name: bytes of a view's arrays, `plain`, and `stored`, compressed as a cache's blocks are."""
    sample = []
    for number, shown in enumerate(batches):
        rows = range(number * len(shown.batch), (number + 1) * len(shown.batch))
        features = {name: x[None] for name, x in shown.output.parts().items() if name != "logits"}
        sample.append(SampledOutputs(rows, (0,), shown.output.logits[None], shown.batch.labels[None], **features))
    sizes = Sizes(sample, setup.index.block_size, setup.basis)
    return {c.name: {"plain": c.encoding.nbytes, "stored": sizes.of(c.encoding).bytes.mid} for c in cases}
