"""Truth: render a sample of the cached views again, ask the teacher again, and compare.

How much two runs of one teacher may differ is measured, not assumed: a live-versus-live control runs the same
views in another order. The cache must be as close to the live teacher as that, beyond what its encoding takes.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pipeline.cache import ArrayReader, Cache, Segment
from pipeline.machine import cores
from pipeline.shards import BlockReader, Index
from pipeline.targets import Encoding, kl
from pipeline.teacher import Teacher, TeacherOutput
from pipeline.views import View, ViewsConfig
from pipeline.views.block import paired_index, render_rows
from pipeline.views.draws import permutation

# A live-versus-live difference of zero (one machine, one plan) still leaves float32 its last bits.
_FLOOR = 1e-5
_SLACK = 4.0


def check_truth(
    cache: Cache,
    index: Index,
    config: ViewsConfig,
    teacher: Teacher,
    segments: Sequence[Segment],
    *,
    samples: int = 512,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare cached targets with the live teacher on a seeded sample of committed views.

    Args:
        cache, index, config, teacher: matching, as checked by the caller.
        segments: those to choose from, cached with the teacher's present numerics.
        samples: views to compare, taken as batches of the teacher's size so that its numerics are the cache's.
        seed: of the choice.

    Returns:
        `views`; `control`: the largest difference between two live runs, nats (of log-probs); `tolerance`
        derived from it; `difference`: the largest difference between cached and live values beyond their
        rounding; `quantisation` and `truncation`: mean KL in nats that rounding and top-k each cost;
        `failures`: a list of views beyond the tolerance; `ok`.
    """
    config = config.cached
    reader, arrays = BlockReader(paired_index(index, config)), ArrayReader(cache)
    batches = _choose(cache, segments, index, teacher.config.batch_size, samples, seed)
    gaps: list[tuple[float, str]] = []
    control, truncation, quantisation, views = 0.0, 0.0, 0.0, 0
    with ThreadPoolExecutor(cores()) as pool:
        for segment, view, rows in batches:
            rendered = render_rows(reader, config, rows, [view], cache.size, pool)
            pixels, erased = rendered.pixels[0], rendered.erased[0]
            live = teacher(pixels, erased)
            back = None if erased is None else erased[::-1]
            turned = teacher(np.ascontiguousarray(pixels[::-1]), back).logits.flip(0)
            full = torch.log_softmax(live.logits.float(), dim=1).cpu()
            again = torch.log_softmax(turned.float(), dim=1).cpu()
            control = max(control, float((full - again).abs().max()))
            shard = index.shard_of(rows.start)
            stored = arrays.read(segment, shard.name, view, rows.start - shard.first, rows.stop - shard.first)
            labels = torch.from_numpy(rendered.labels[0])
            gap = _beyond_rounding(segment.encoding, stored, live, full, labels)
            worst = int(gap.argmax())
            gaps += [(float(gap[worst]), f"{shard.name} key {index.key(rows[worst])} view {view}")]
            exact = _unrounded(segment.encoding, full)
            kept = segment.encoding.decode({n: torch.from_numpy(a) for n, a in stored.items()}).log_probs
            cut, whole = float(kl(full, exact).sum()), float(kl(full, kept).sum())
            truncation, quantisation, views = truncation + cut, quantisation + whole - cut, views + len(rows)
    reader.close()
    tolerance = _FLOOR + _SLACK * control
    failures = [{"where": where, "difference": gap} for gap, where in gaps if not gap <= tolerance]
    return {
        "views": views,
        "control": control,
        "tolerance": tolerance,
        "difference": max((gap for gap, _ in gaps), default=0.0),
        "truncation": truncation / max(1, views),
        "quantisation": quantisation / max(1, views),
        "failures": failures,
        "ok": views > 0 and not failures,
    }


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several checks as one: the worst of each, means over all views."""
    views = sum(p["views"] for p in parts)
    means = {n: sum(p[n] * p["views"] for p in parts) / max(1, views) for n in ("truncation", "quantisation")}
    worst = {n: max(p[n] for p in parts) for n in ("control", "tolerance", "difference")}
    failures = [f for p in parts for f in p["failures"]]
    return {"views": views, **worst, **means, "failures": failures, "ok": all(p["ok"] for p in parts)}


def _choose(
    cache: Cache, segments: Sequence[Segment], index: Index, batch: int, samples: int, seed: int
) -> list[tuple[Segment, View, range]]:
    """Seeded teacher batches among the committed tasks whose shard the index has."""
    by_name = {shard.name: shard for shard in index.shards}
    tasks = [(segment, by_name[name]) for segment in segments for name in cache.committed(segment) if name in by_name]
    chosen, taken, seen = [], 0, set()
    for draw in range(64 * max(1, len(tasks))):
        if taken >= samples or not tasks:
            break
        # One word each for task, view, block and batch within the block.
        words = permutation(len(tasks), "truth", seed, draw)
        segment, shard = tasks[int(words[0])]
        view = segment.views[int(permutation(len(segment.views), "view", seed, draw)[0])]
        block = shard.first_block + int(permutation(shard.blocks, "block", seed, draw)[0])
        rows = index.rows(block)
        parts = -(-len(rows) // batch)
        start = rows.start + batch * int(permutation(parts, "part", seed, draw)[0])
        part = range(start, min(start + batch, rows.stop))
        if (segment.name, view, part) not in seen:
            seen.add((segment.name, view, part))
            chosen.append((segment, view, part))
            taken += len(part)
    return chosen


def _beyond_rounding(
    encoding: Encoding, stored: dict[str, np.ndarray], live: TeacherOutput, full: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Largest difference of each view, float32 (N,), less half a step of the stored dtype where it was rounded."""
    if encoding.kind == "dense":
        return _gap(stored["logits"], live.logits.float().cpu())
    index = torch.from_numpy(stored["index"].astype(np.int64))
    now = full.gather(1, index.clamp(max=encoding.num_classes - 1))
    # Each kept class must also be one of the live top k, but for ties.
    least = full.topk(encoding.k, dim=1).values[:, -1:]
    now = torch.where(now < least - 1e-3, torch.inf, now)
    at_label = full.gather(1, labels.clamp(min=0)[:, None])
    said = stored["label_log_prob"][:, None]
    unlabelled = (labels < 0)[:, None]
    agree = torch.from_numpy(np.isnan(said)) == unlabelled
    gap = torch.where(unlabelled & agree, 0, _gap(said, at_label)[:, None])
    return torch.maximum(_gap(stored["log_prob"], now), torch.where(agree, gap, torch.inf)[:, 0])


def _gap(cached: np.ndarray, now: torch.Tensor) -> torch.Tensor:
    """Largest difference in each row, float32 (N,), less half a step of the cached dtype; NaN counts as infinite."""
    step = np.spacing(np.abs(np.nan_to_num(cached))).astype(np.float32)
    gap = (torch.from_numpy(cached.astype(np.float32)) - now).abs() - torch.from_numpy(step) / 2
    return gap.nan_to_num(torch.inf).clamp(min=0).amax(dim=1)


def _unrounded(encoding: Encoding, full: torch.Tensor) -> torch.Tensor:
    """What the encoding would give back if it did not round: its truncation alone."""
    if encoding.dense:
        return full
    same = Encoding(encoding.kind, encoding.k, "float32", encoding.num_classes)
    fields = same.encode(TeacherOutput(full), torch.full((len(full),), -1))
    return same.decode({name: torch.from_numpy(array) for name, array in fields.items()}).log_probs
