"""Measuring what a forecast multiplies: all that caching does, on a small sample."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kdpipe._util.machine import cores
from kdpipe.caching.backend import TeacherSpec
from kdpipe.caching.config import CachingConfig
from kdpipe.caching.modules import VIEWS, FitSample, parts_of, try_extracting
from kdpipe.caching.trial import try_batch
from kdpipe.estimate.candidates import candidate_encodings, largest_rank
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.estimate.sizes import CandidateSize, Sizes, Writing, measure_writing
from kdpipe.estimate.throughput import Throughput, measure_throughput
from kdpipe.shards import Index
from kdpipe.targets import Calibration, Encoding, TargetsConfig
from kdpipe.teacher import Teacher
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import labelling_index

# Of the sample's tokens, as many times the channels are enough for a basis to forecast with.
_TOKENS = 8


@dataclass(frozen=True)
class SampleMeasurements:
    """What was measured on the sample.

    Attributes:
        throughput: of a task's work.
        sample: the teacher's outputs.
        encoding: the chosen one.
        candidates: sizes by encoding, the chosen one's among them.
        writing: of the chosen encoding.
        part_bytes: of each part of the teacher that is stored with it, by name.
        startup: seconds before the first task, without loading the teacher.
        threads: render threads.
        seconds: that measuring took.
    """

    throughput: Throughput
    sample: list[SampledOutputs]
    encoding: Encoding
    candidates: list[CandidateSize]
    writing: Writing
    part_bytes: dict[str, int]
    startup: float
    threads: int
    seconds: float


def measure(
    index: Index,
    config: ViewsConfig,
    teacher: Teacher,
    targets: TargetsConfig,
    views: Sequence[View],
    *,
    caching: CachingConfig | None = None,
    seconds: float = 60.0,
    log: Callable[[str], None] = lambda _: None,
) -> SampleMeasurements:
    """Do everything that caching does, on at most 2 % of the samples (but at least two blocks).

    Args:
        index, config, teacher, targets, views, caching: as for `cache_views`.
        seconds: to spend; a teacher that takes long for a batch may take more.
        log: receives what is being measured.

    Raises:
        ShardError: a label is out of range, or a sample can't be read.
        TeacherError: the teacher can't run, or can't do the first batch: see `trial.try_batch`.
    """
    began = time.monotonic()
    config, caching = config.cached, caching or CachingConfig()
    threads = caching.render_threads or cores()
    log("starting")
    labelling_index(index, config).check_labels(teacher.num_classes)
    index.verify()
    encoding = Encoding.of(targets, teacher.num_classes, TeacherSpec.of(teacher, targets.features).shapes)
    part_bytes = try_extracting(teacher, parts_of(targets))
    teacher.search(len(views) * -(-len(index) // teacher.config.batch_size), at_most=0.25 * seconds)
    first = FitSample(index, config, views, teacher.built.input_size, threads)
    try_batch(teacher, first, encoding, nondeterministic=caching.allow_nondeterministic)
    startup = time.monotonic() - began
    log("rendering and running the teacher")
    throughput, sample = measure_throughput(
        index, config, teacher, encoding, views, threads, max(0.0, 0.75 * seconds - startup)
    )
    candidates = candidate_encodings(encoding)
    if encoding.map is not None:  # a cache begins with fitting the map's calibration to this many views
        startup += min(VIEWS, len(index) * len(views)) * throughput.whole.mid / throughput.batch
    sizes = Sizes(sample, index.block_size, _calibration(sample, largest_rank(candidates)))
    found = []
    for candidate in candidates:
        log(f"encoding {candidate.name}")
        found.append(sizes.of(candidate))
    log("writing")
    longest = max(shard.samples for shard in index.shards)
    writing = measure_writing(encoding, sizes, index.block_size, longest, len(views))
    took = time.monotonic() - began
    return SampleMeasurements(throughput, sample, encoding, found, writing, part_bytes, startup, threads, took)


def _calibration(sample: Sequence[SampledOutputs], rank: int | None) -> Calibration | None:
    """One of so many components, fitted to the sample's maps; None where there are none."""
    maps = [part.map for part in sample if part.map is not None]
    if not maps:
        return None
    tokens = torch.cat([x.movedim(2, -1).flatten(0, 3) for x in maps])
    # More change the basis little, and would take too long.
    return Calibration.fit(tokens[:: max(1, len(tokens) // (_TOKENS * tokens.shape[1]))], rank)
