"""Statistics of a cache's arrays against loops over what Zarr and `Encoding.decode` give, and against the records."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import zarr

from kdpipe.cache import ArrayReader, Cache, Store
from kdpipe.cache.tools.label_statistics import ViewLabels
from kdpipe.cache.tools.statistics import choose_blocks, committed_blocks, read_statistics
from kdpipe.cache.tools.view_statistics import BINS, ViewStatistics, sizes
from kdpipe.caching import cache_views
from kdpipe.errors import CacheError, IdentityError
from kdpipe.evaluation import BINS as EVALUATION_BINS
from kdpipe.evaluation import Sums
from kdpipe.shards import BlockReader, build_index
from kdpipe.targets import Encoding, TargetsConfig
from kdpipe.teacher import TeacherOutput
from kdpipe.views.block import block_views, paired_index, render_rows
from tests.tiny import CLASSES, POLICIES, SIZE, make_cache, make_world, teacher

VIEWS = (0, 1, "center")
# Of each policy several encodings in one cache; those of views that are there already count once in some statistics.
ENCODINGS = {
    "plain": [
        TargetsConfig(k=4),
        TargetsConfig(k=6, dtype="float32"),
        TargetsConfig(k=CLASSES),
        TargetsConfig(kind="dense"),
        TargetsConfig(kind="dense", dtype="float32"),
    ],
    "recipe": [TargetsConfig(kind="dense", dtype="float32"), TargetsConfig(k=5)],
}
NUMBERS = ("views", "labelled", "mixed", "teacher_top1", "teacher_top5", "confidence", "entropy")
MEANS = ("ece", "mean_confidence", "mean_entropy")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A world in which the last quarter of each shard has no label."""
    return make_world(tmp_path_factory.mktemp("half"), unlabelled=0.25)


@pytest.fixture(scope="module", params=list(POLICIES))
def cache(request, half, tmp_path_factory):
    path = tmp_path_factory.mktemp("caches") / "c.zarr"
    for targets in ENCODINGS[request.param]:
        made = make_cache(half, path, config=POLICIES[request.param], views=VIEWS, targets=targets)
    return made


def by_hand(cache, index, position, view):
    """Of one shard's view: its labels as rendering has them, and which rows are mixed."""
    shard, config = index.shards[position], cache.views_config
    labels, mixed = [], []
    whole = paired_index(index, config)
    reader = BlockReader(whole)
    with ThreadPoolExecutor(1) as pool:
        for block in range(shard.first_block, shard.first_block + shard.blocks):
            rows = index.rows(block)
            labels += render_rows(reader, config, rows, [view], SIZE, pool).labels[0].tolist()
            draws = block_views(whole, config, block, view).mixing
            mixed += [draws is not None and draws.lam[i] < 1 for i in range(len(rows))]
    reader.close()
    return np.array(labels), np.array(mixed)


def stored(cache, segment, position, view):
    """Of one shard's view: distributions float64 (n, C), and classes in order of likelihood (n, 5 or fewer)."""
    group = zarr.open_group(cache.store.url, mode="r")
    at, samples = segment.views.index(view), cache.shards[position]["samples"]
    fields = {f.name: group[segment.array(f.name)][at, position, :samples] for f in segment.encoding.fields()}
    log_p = segment.encoding.decode({name: torch.from_numpy(a) for name, a in fields.items()}).log_probs
    order = np.argsort(-fields["logits"].astype(float), axis=1) if "logits" in fields else fields["index"]
    return np.exp(log_p.double().numpy()), order[:, :5].astype(int)


def histogram(values):
    """Counts in BINS bins from 0 to 1, open to the left."""
    counts = [0] * BINS
    for value in values:
        counts[max(0, int(np.ceil(value * BINS)) - 1)] += 1
    return counts


def expected(encoding, p, order, labels, mixed):
    """A `ViewSums.summary` by loops."""
    known, confidence = labels >= 0, p.max(axis=1)
    entropy = np.array([-sum(x * np.log(x) for x in row if x > 0) for row in p])
    gap = 0.0
    for b in range(BINS):
        there = [i for i in np.flatnonzero(known) if b / BINS < confidence[i] <= (b + 1) / BINS]
        gap += abs(sum(float(order[i, 0] == labels[i]) - confidence[i] for i in there))
    top5 = np.mean([labels[i] in order[i] for i in np.flatnonzero(known)])
    falling = -np.sort(-p, axis=1)
    return {
        "views": len(p),
        "labelled": int(known.sum()),
        "mixed": int(mixed.sum()),
        "teacher_top1": np.mean(order[known, 0] == labels[known]),
        "teacher_top5": top5 if encoding.k >= 5 else None,
        "confidence": histogram(confidence),
        "entropy": histogram(entropy / np.log(CLASSES)),
        "ece": gap / known.sum(),
        "mean_confidence": confidence.mean(),
        "mean_entropy": entropy.mean(),
        "retained_mass": {str(k): falling[:, :k].sum(axis=1).mean() for k in sizes(encoding)},
    }


def test_each_view_against_loops(cache, half):
    found = read_statistics(cache, committed_blocks(cache), ViewLabels(cache, half.index))
    assert found.samples == 94
    view_sums = {(t.segment, t.view): t.summary() for t in found.view_sums}
    assert len(view_sums) == sum(len(s.views) for s in cache.segments)
    for segment in cache.segments:
        for view in segment.views:
            parts = [(*stored(cache, segment, i, view), *by_hand(cache, half.index, i, view)) for i in range(3)]
            want = expected(segment.encoding, *(np.concatenate(part) for part in zip(*parts, strict=True)))
            got = view_sums[segment.name, view]
            assert {n: got[n] for n in NUMBERS} == {n: want[n] for n in NUMBERS}
            # `decode` is float32, and what float16 log-probabilities add up to is not quite 1
            assert {n: got[n] for n in MEANS} == pytest.approx({n: want[n] for n in MEANS}, rel=1e-5)
            assert got["retained_mass"] == pytest.approx(want["retained_mass"], rel=1e-5)
            assert np.sum(got["calibration"], axis=0)[0] == got["labelled"]


def test_sums_are_those_of_the_records(cache, half):
    found = read_statistics(cache, committed_blocks(cache), ViewLabels(cache, half.index))
    for segment in cache.segments:
        view_sums = [t for t in found.view_sums if t.segment == segment.name]
        said = cache.quality(segment)
        for name in ("views", "labelled", "top1", *(["top5"] if segment.encoding.k >= 5 else [])):
            assert sum(getattr(t, name) for t in view_sums) == getattr(said, name), (segment.name, name)
        rounding = 1e-3 if segment.encoding.dtype == "float16" else 1e-6
        assert sum(t.mass[-1] for t in view_sums) == pytest.approx(said.retained_mass, rel=rounding)


def test_confusions_and_contradictions_against_loops(cache, half):
    index = half.index
    found = read_statistics(cache, committed_blocks(cache), ViewLabels(cache, index), top=7)
    pairs, samples, unmixed = Counter(), [], 0
    first = {view: next(s for s in cache.segments if view in s.views) for view in VIEWS}
    for position, shard in enumerate(index.shards):
        views = [(*stored(cache, first[v], position, v), by_hand(cache, index, position, v)[1]) for v in VIEWS]
        for row in range(shard.samples):
            label, rows = int(index.labels[shard.first + row]), []
            for p, order, mixed in views:
                if label >= 0 and not mixed[row]:
                    unmixed += 1
                    rows.append(p[row])
                    if order[row, 0] != label:
                        pairs[label, int(order[row, 0])] += 1
            mean = np.mean(rows, axis=0) if rows else None
            if rows and mean.argmax() != label:
                key = index.key(shard.first + row)
                samples.append((shard.name, key, label, int(mean.argmax()), len(rows), mean.max(), mean[label]))
    assert found.unmixed == unmixed
    assert found.confusions == pairs
    assert len(samples) > 7  # the tiny teacher is often wrong
    samples.sort(key=lambda s: -s[5])
    got = found.contradictions
    assert [tuple(c[n] for n in ("shard", "key", "label", "predicted", "views")) for c in got] == [
        s[:5] for s in samples[:7]
    ]
    assert [c["p"] for c in got] == pytest.approx([s[5] for s in samples[:7]], rel=1e-5)
    assert [c["p_label"] for c in got] == pytest.approx([s[6] for s in samples[:7]], rel=1e-4)


def test_calibration_is_the_evaluators(cache, half):
    """Dense float32 targets are logits: the evaluator scores the teacher as it would a student."""
    segment = next(s for s in cache.segments if s.encoding.name == "dense-float32" and s.views == ("center",))
    sums = Sums(torch.device("cpu"))
    for shard in half.index.shards:
        logits = ArrayReader(cache).read(segment, shard.name, "center", 0, shard.samples)["logits"]
        labels = half.index.labels[shard.first : shard.first + shard.samples]
        sums.add(torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64)), None)
    found = read_statistics(cache, committed_blocks(cache), ViewLabels(cache, half.index))
    got = next(t for t in found.view_sums if t.segment == segment.name).summary()
    want = sums.metrics()
    assert got["ece"] == pytest.approx(want["ece"], rel=1e-9)
    assert (got["teacher_top1"], got["teacher_top5"]) == (want["top1"], want["top5"])
    assert BINS == EVALUATION_BINS


@pytest.mark.parametrize("k", [1, 3, 16, 300])
def test_many_classes(k):
    """Indices beyond uint8; k of one class, of a number that is no power of two, of all."""
    encoding = Encoding("topk", k, "float32", 300)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 300, generator=generator) * 4
    fields = encoding.encode(TeacherOutput(logits), torch.full((20,), -1))
    said = ViewStatistics.of(encoding, fields)
    log_p = encoding.decode({name: torch.from_numpy(a) for name, a in fields.items()}).log_probs.double().numpy()
    np.testing.assert_allclose(said.entropy, -(np.exp(log_p) * log_p).sum(axis=1), rtol=1e-5)
    total = np.zeros((20, 300))
    said.add_to(total, np.full(20, 0.5))
    np.testing.assert_allclose(total, np.exp(log_p) / 2, rtol=1e-5, atol=1e-9)
    assert said.mass.shape == (20, len(sizes(encoding)))
    assert sizes(encoding)[-1] == k
    assert (np.diff(said.mass, axis=1) >= 0).all()


def test_without_labels_the_rest_is_there(cache, half):
    blocks = committed_blocks(cache)
    blind, seeing = read_statistics(cache, blocks), read_statistics(cache, blocks, ViewLabels(cache, half.index))
    assert (blind.unmixed, len(blind.confusions), blind.contradictions) == (0, 0, [])
    for one, other in zip(blind.view_sums, seeing.view_sums, strict=True):
        assert one.summary()["teacher_top1"] is None
        assert one.summary()["ece"] is None
        for name in ("views", "mean_confidence", "mean_entropy", "retained_mass", "confidence", "entropy"):
            assert one.summary()[name] == other.summary()[name]


def test_a_choice_of_blocks(cache, half):
    everything, labels = committed_blocks(cache), ViewLabels(cache, half.index)
    assert choose_blocks(cache) == everything
    some = choose_blocks(cache, 40, seed=1)
    assert 40 <= sum(len(b.rows) for b in some) < 40 + 16
    assert some == choose_blocks(cache, 40, seed=1) == sorted(some, key=lambda b: b[:2])
    assert any(choose_blocks(cache, 40, seed=s) != some for s in range(2, 6))
    # What is read of a part and of the rest adds up to the whole.
    rest = [b for b in everything if b not in some]
    one, other, whole = (read_statistics(cache, blocks, labels, top=99) for blocks in (some, rest, everything))
    assert one.samples + other.samples == whole.samples == 94
    assert one.confusions + other.confusions == whole.confusions
    assert len(one.contradictions) + len(other.contradictions) == len(whole.contradictions)
    for a, b, c in zip(one.view_sums, other.view_sums, whole.view_sums, strict=True):
        assert a.top1 + b.top1 == c.top1
        assert (a.confidence + b.confidence).tolist() == c.confidence.tolist()


def test_every_block_is_read_once_and_alone(cache, half, monkeypatch):
    """So memory is that of a block, and of one shard's open files."""
    seen, readers, read = Counter(), {}, ArrayReader.read

    def spy(self, segment, shard, view, start, stop, fields):
        assert stop - start <= 16
        seen[segment.name, view, shard, start] += 1
        readers.setdefault(shard, set()).add(id(self))
        out = read(self, segment, shard, view, start, stop, fields)
        assert {name.split("/c/0/")[1].split("/")[0] for name in self._files} == {shard[-5]}
        return out

    monkeypatch.setattr(ArrayReader, "read", spy)
    ticks = []
    read_statistics(cache, committed_blocks(cache), ViewLabels(cache, half.index), on_samples=ticks.append)
    assert set(seen.values()) == {1}
    assert len(seen) == sum(len(s.views) for s in cache.segments) * 8  # 3 + 3 + 2 blocks
    assert (sum(ticks), len(ticks)) == (94, 8)


def test_unfinished_segments(cache_path, world, tmp_path):
    cache = Cache(Store(cache_path))
    for shard in ("shard-0000.tar", "shard-0002.tar"):
        del cache.commits["001-top4-float16-center", shard]
    del cache.commits["000-top4-float16-v0-3", "shard-0002.tar"]
    blocks = choose_blocks(cache)
    found = read_statistics(cache, blocks, ViewLabels(cache, world.index))
    assert found.samples == sum(len(b.rows) for b in blocks) == 73
    assert [t.views for t in found.view_sums] == [73, 73, 73, 33]
    cache.commits.clear()
    assert choose_blocks(cache) == []
    assert [t.views for t in read_statistics(cache, []).view_sums] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_limited_cache_and_the_whole_index(half, tmp_path, name):
    """The limit cuts a block; what its samples are mixed with lies beyond."""
    config = POLICIES[name]
    limited = half.index.limit(53)
    cache, _ = cache_views(str(tmp_path / "c"), limited, config, teacher(), TargetsConfig(k=5), [0, 1])
    for index in (half.index, limited):
        found = read_statistics(cache, committed_blocks(cache), ViewLabels(cache, index))
        said = cache.quality(cache.segments[0])
        for field in ("views", "labelled", "top1", "top5"):
            assert sum(getattr(t, field) for t in found.view_sums) == getattr(said, field)


def test_labels_of_other_samples_are_refused(cache_path, world, tmp_path):
    cache = Cache(Store(cache_path))
    with pytest.raises(IdentityError, match=r"shard-0000\.tar"):
        ViewLabels(cache, make_world(tmp_path / "w", seed=5).index)
    two = build_index(str(world.folder / "shards"), tmp_path / "two.index", block_size=16, limit=73)
    with pytest.raises(CacheError, match="fewer samples than the cache; found 73; allowed: 94"):
        ViewLabels(cache, two)
    cache.identity["views"]["version"] = 1
    with pytest.raises(IdentityError, match="another policy version; found 1"):
        ViewLabels(cache, world.index)
