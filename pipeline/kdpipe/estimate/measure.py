"""Measuring what a forecast needs: all that caching does, on a small sample."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kdpipe._util.machine import cores
from kdpipe.caching.backend import TeacherSpec
from kdpipe.caching.config import CachingConfig
from kdpipe.caching.modules import VIEWS, FitSample, parts_of, try_extracting
from kdpipe.caching.trial import try_batch
from kdpipe.estimate.candidates import encodings, largest_rank
from kdpipe.estimate.sampling import SampledOutputs
from kdpipe.estimate.sizes import CandidateSize, Scales, Writing, measure_writing
from kdpipe.estimate.throughput import Throughput, measure_throughput
from kdpipe.shards import Index
from kdpipe.targets import Calibration, Encoding, TargetsConfig
from kdpipe.teacher import Teacher
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import labelling_index
from kdpipe.views.canaries import COUNT

# Of a sample's tokens, as many times the channels are enough for a basis to forecast with.
_TOKENS = 8


@dataclass(frozen=True)
class SampleMeasurements:
    """What was found out on the sample.

    Attributes:
        throughput: of rendering and teacher.
        sample: the teacher's answers.
        encoding: the chosen one.
        weights: by encoding, the chosen one among them.
        writing: of the chosen encoding.
        calibration: of its map, fitted to the sample.
        part_bytes: of each part of the teacher that goes with it, by name.
        startup: seconds before the first task, without loading the teacher.
        threads: render threads.
        seconds: that measuring took.
    """

    throughput: Throughput
    sample: list[SampledOutputs]
    encoding: Encoding
    weights: list[CandidateSize]
    writing: Writing
    calibration: Calibration | None
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
        log: told what is being measured.

    Raises:
        ShardError: a label is out of range, or a sample can't be read.
        TeacherError: the teacher can't run, or can't do the first batch: see `trial.try_batch`.
    """
    began = time.monotonic()
    config, block = config.cached, index.block_size
    caching = caching or CachingConfig()
    threads = caching.render_threads or cores()
    log("starting")
    labelling_index(index, config).check_labels(teacher.num_classes)
    index.verify()
    described = TeacherSpec.of(teacher, targets.features)
    encoding = Encoding.of(targets, teacher.num_classes, described.shapes)
    part_bytes, extracting = _parts(teacher, targets)
    teacher.search(len(views) * -(-len(index) // teacher.config.batch_size), at_most=0.25 * seconds)
    first = FitSample(index, config, views, teacher.built.input_size, threads)
    try_batch(teacher, first, encoding, nondeterministic=caching.allow_nondeterministic)
    startup = time.monotonic() - began
    log("rendering and asking the teacher")
    throughput, sample = measure_throughput(
        index, config, teacher, encoding, views, threads, max(0.0, 0.75 * seconds - startup)
    )
    # A cache begins with its canaries, rendered one by one, and with what isn't in arrays.
    startup += COUNT * threads * (throughput.decode + throughput.render) + extracting
    all_of_them = encodings(encoding)
    calibration, fitting = _calibration(encoding, sample, largest_rank(all_of_them))
    if calibration is not None:
        a_view = throughput.decode + throughput.render + throughput.forward.mid / throughput.batch
        startup += fitting + min(VIEWS, len(index) * len(views)) * a_view
    scales = Scales(sample, block, 0.2 * seconds / len(all_of_them), calibration)
    weights = []
    for one in all_of_them:
        log(f"encoding {one.name}")
        weights.append(scales.weigh(one))
    log("writing")
    writing = measure_writing(encoding, sample, block, scales)
    took = time.monotonic() - began
    fitted = scales.of_rank(encoding)
    return SampleMeasurements(
        throughput, sample, encoding, weights, writing, fitted, part_bytes, startup, threads, took
    )


def _parts(teacher: Teacher, targets: TargetsConfig) -> tuple[dict[str, int], float]:
    """Bytes of the parts of the teacher that will be kept, and seconds that it takes to get them."""
    began = time.monotonic()
    sizes = try_extracting(teacher, parts_of(targets))
    return sizes, time.monotonic() - began


def _calibration(
    encoding: Encoding, sample: Sequence[SampledOutputs], rank: int | None
) -> tuple[Calibration | None, float]:
    """One of so many components, fitted to the sample, and the seconds that it takes to fit the cache's own."""
    maps = [part.map for part in sample if part.map is not None]
    if encoding.map is None or not maps:
        return None, 0.0
    tokens = torch.cat([x.movedim(2, -1).flatten(0, 3) for x in maps])
    # More tell little more, and take seconds that there are not.
    tokens = tokens[:: max(1, len(tokens) // (_TOKENS * tokens.shape[1]))]
    began = time.monotonic()
    fitted = Calibration.fit(tokens, rank)
    wanted = VIEWS * math.prod(encoding.map.shape[:-1])
    return fitted, (time.monotonic() - began) * wanted / len(tokens)
