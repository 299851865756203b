"""Statistics of the teacher's outputs: a cache's logits are read once, a block at a time, in constant memory.

Segments that keep features alone are left out, and of the others their features aren't read.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdpipe.cache.cache import Cache
from kdpipe.cache.layout import Segment
from kdpipe.cache.read import ArrayReader
from kdpipe.cache.tools.label_statistics import LabelStatistics, ViewLabels
from kdpipe.cache.tools.view_statistics import ViewStatistics, ViewSums
from kdpipe.views.draws import permutation

# Read by default: less than a minute where the top 16 are kept, minutes for 1,000 dense classes.
_MOST_VIEWS = 4_000_000


class Block(NamedTuple):
    """A block of a cache: position of its shard, its number and its rows in that shard."""

    shard: int
    number: int
    rows: range


@dataclass
class Statistics:
    """What was found.

    Attributes:
        samples: read; of each, all committed views.
        view_sums: one for each view of each segment that has logits.
        unmixed: labelled views that the next two are about; a view that is kept in two encodings counts once.
        confusions: how often the teacher's first class was another than the label, by (label, class).
        contradictions: the samples with the largest probability of a wrong first class, taking the mean
            distribution over a sample's unmixed views: shard, key, label, predicted, p, p_label, views.
    """

    samples: int
    view_sums: list[ViewSums]
    unmixed: int = 0
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    contradictions: list[dict[str, Any]] = field(default_factory=list)


def with_logits(cache: Cache) -> list[Segment]:
    """The segments that keep logits, in the order of their numbers."""
    return [segment for segment in cache.segments if segment.encoding.kind != "none"]


def committed_blocks(cache: Cache) -> list[Block]:
    """The blocks of all shards that have a committed view with logits, in order."""
    size, found = int(cache.identity["block_size"]), []
    there = {shard for segment in with_logits(cache) for shard in cache.committed(segment)}
    for position, shard in enumerate(cache.shards):
        if shard["name"] in there:
            starts = range(0, shard["samples"], size)
            found += [Block(position, s // size, range(s, min(s + size, shard["samples"]))) for s in starts]
    return found


def choose_blocks(cache: Cache, samples: int | None = None, seed: int = 0) -> list[Block]:
    """A seeded choice of committed blocks with at least so many samples; None for all, up to 4 million views."""
    views = sum(len(segment.views) for segment in with_logits(cache))
    left = samples or max(1, _MOST_VIEWS // max(1, views))
    blocks = committed_blocks(cache)
    taken: list[Block] = []
    for i in permutation(len(blocks), "inspect", seed).tolist() if blocks else []:
        if left <= 0:
            break
        taken.append(blocks[i])
        left -= len(blocks[i].rows)
    return sorted(taken, key=lambda block: block[:2])


def read_statistics(
    cache: Cache,
    blocks: Sequence[Block],
    labels: ViewLabels | None = None,
    *,
    top: int = 10,
    on_samples: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Read the committed views with logits of these blocks.

    Args:
        cache: open.
        blocks: from `choose_blocks`.
        labels: of its samples; without them what needs labels is left out.
        top: contradictions to keep.
        on_samples: called with the number of samples after each block.

    Raises:
        CorruptionError: a chunk is damaged.
    """
    segments = with_logits(cache)
    view_sums = {(s.name, view): ViewSums(s.name, view, s.encoding) for s in segments for view in s.views}
    found = Statistics(sum(len(block.rows) for block in blocks), list(view_sums.values()))
    reader = ArrayReader(cache)
    for position, group in itertools.groupby(blocks, lambda block: block.shard):
        shard = cache.shards[position]["name"]
        views = [(s, view) for s in segments if (s.name, shard) in cache.commits for view in s.views]
        arrays = copy.copy(reader)  # with no files open: their tables of chunks would add up over the shards
        for _, number, rows in group:
            against_labels = None if labels is None else LabelStatistics(labels.own(shard, number), cache.num_classes)
            for segment, view in views:
                fields = segment.encoding.fields(("logits",))
                read = arrays.read(segment, shard, view, rows.start, rows.stop, fields)
                outputs = ViewStatistics.of(segment.encoding, read)
                sums = view_sums[segment.name, view]
                if labels is None or against_labels is None:
                    sums.add(outputs)
                    continue
                of_view, mixed = labels.of(shard, number, view)
                sums.add(outputs, of_view, mixed)
                against_labels.add(view, outputs, mixed)
            if labels is not None and against_labels is not None:
                found.unmixed += against_labels.views
                found.confusions.update(against_labels.confusions)
                worst = [
                    {"shard": shard, "key": labels.key(shard, rows[r]), **of} for r, of in against_labels.worst(top)
                ]
                found.contradictions = sorted([*found.contradictions, *worst], key=lambda c: -c["p"])[:top]
            on_samples(len(rows))
    return found
