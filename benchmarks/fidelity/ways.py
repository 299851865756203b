"""The ways to keep targets that are compared, and the targets that each of them gives back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.fidelity.scene import Scene, Shown, of_rank
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.estimate.sizes import Scales
from kdpipe.losses.target_class import with_label
from kdpipe.targets import Encoding, Targets, TargetsConfig

KS = (1, 5, 10, 16, 32, 64, 100)
# Far below every log-probability of a class that was kept, and still a number.
_NOTHING = -1e4
_SECONDS = 2.0
_USUAL = 16


@dataclass(frozen=True)
class Way:
    """One way to keep one kind of targets; the other kinds are exact.

    Attributes:
        kind: logits, pooled or map.
        by_head: pooled features, from which the teacher's classifier gives all logits.
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
        """Whether it keeps only some classes."""
        return self.kind == "logits" and not self.by_head and not self.encoding.dense

    def targets(self, scene: Scene, shown: Shown) -> Targets:
        """What reading gives back, the rest as the teacher said it."""
        encoding, exact = self.encoding, shown.exact
        basis = None
        if scene.basis is not None and encoding.map is not None:
            basis = of_rank(scene.basis, encoding.map.rank)
        fields = encoding.encode(shown.output, shown.batch.labels, basis)
        read = encoding.decode({name: torch.from_numpy(array) for name, array in fields.items()}, basis)
        if self.by_head:
            assert scene.info.head is not None
            with torch.no_grad():
                return replace(exact, log_probs=torch.log_softmax(scene.info.head(read.pooled), dim=1))
        if self.kind == "logits":
            return replace(read, pooled=exact.pooled, map=exact.map)
        return replace(exact, **{self.kind: getattr(read, self.kind)})


def ways(scene: Scene) -> list[Way]:
    """Top k for each k that is smaller than the classes, all logits, and the features, smallest first."""
    info = scene.info
    shapes: dict[str, tuple[int, ...]] = {"pooled": (info.pooled,)} if info.pooled else {}
    if info.map is not None:
        shapes["map"] = (*info.map[1:], info.map[0])

    def made(of: str, by_head: bool = False, **config: Any) -> Way:
        return Way(of, Encoding.of(TargetsConfig(**config), info.num_classes, shapes), by_head)

    ks = [k for k in KS if k < info.num_classes]
    found = [made("logits", k=k) for k in ks]
    # Enough to see that it is k that costs, and not float16.
    found += [made("logits", k=k, dtype="float32") for k in ks if k == min(_USUAL, ks[-1])]
    found += [made("logits", kind="dense", dtype=dtype) for dtype in ("float16", "float32")]
    for dtype in ("int8", "float16", "float32") if info.pooled else ():
        found.append(made("pooled", kind="none", pooled=dtype))
        if info.head is not None:
            found.append(made("logits", by_head=True, kind="none", pooled=dtype))
    for dtype in ("int8", "float16") if info.map else ():
        found += [made("map", kind="none", map=dtype, map_rank=rank) for rank in scene.ranks]
    found += [made("map", kind="none", map=dtype) for dtype in ("int8", "float16", "float32") if info.map]
    return found


def renormalised(targets: Targets) -> Targets:
    """Of top-k targets the k made to sum to 1 and nothing for the others, as other formats do."""
    assert targets.log_probs is not None
    assert targets.index is not None
    kept = torch.log_softmax(targets.log_probs.gather(1, targets.index), dim=1)
    log_probs = torch.full_like(targets.log_probs, _NOTHING).scatter(1, targets.index, kept)
    return Targets(log_probs, None, True, None, targets.pooled, targets.map)


def passed_off(targets: Targets, labels: torch.Tensor) -> Targets:
    """Top-k targets for a loss that asks for all classes, and refuses them otherwise."""
    log_probs = with_label(targets, labels)
    return replace(targets, log_probs=log_probs, label_log_prob=None, dense=True, index=None)


def bytes_of(found: Sequence[Way], scene: Scene, batches: Sequence[Shown]) -> dict[str, dict[str, float]]:
    """Bytes of a view in each way, by name: in arrays, and stored, compressed as a cache's blocks are."""
    sample = [_answered(number, shown) for number, shown in enumerate(batches)]
    scales = Scales(sample, scene.index.block_size, _SECONDS, scene.basis)
    return {
        way.name: {"plain": way.encoding.nbytes, "stored": scales.weigh(way.encoding).numbered.mid} for way in found
    }


def _answered(number: int, shown: Shown) -> SampledOutputs:
    output, rows = shown.output, len(shown.batch)
    features = {name: x[None] for name, x in output.parts().items() if name != "logits"}
    places = range(number * rows, (number + 1) * rows)
    return SampledOutputs(places, (0,), output.logits[None], shown.batch.labels[None], **features)


def retained(shown: Sequence[Shown], k: int) -> float:
    """Mean probability of the teacher's k likeliest classes."""
    log_probs = [torch.log_softmax(s.output.logits.double(), dim=1).topk(k, dim=1).values for s in shown]
    return math.fsum(float(x.exp().sum(dim=1).mean()) for x in log_probs) / len(shown)
