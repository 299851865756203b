"""Measuring what a forecast needs: all that caching does, on a small sample."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.caching.pace import Pace, rehearse
from pipeline.caching.run import CachingConfig
from pipeline.caching.sample import Answered
from pipeline.caching.weigh import Weight, Writing, encodings, measure_writing, weigh
from pipeline.machine import cores
from pipeline.shards import Index
from pipeline.targets import Encoding, TargetsConfig
from pipeline.teacher import Teacher
from pipeline.views import View, ViewsConfig
from pipeline.views.block import labelling_index
from pipeline.views.canaries import COUNT


@dataclass(frozen=True)
class Measured:
    """What was found out on the sample.

    Attributes:
        pace: of rendering and teacher.
        sample: the teacher's answers.
        weights: by encoding, the chosen one among them.
        writing: of the chosen encoding.
        startup: seconds before the first task, without loading the teacher.
        threads: render threads.
        seconds: that measuring took.
    """

    pace: Pace
    sample: list[Answered]
    weights: list[Weight]
    writing: Writing
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
    say: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Do everything that caching does, on at most 2 % of the samples (but at least two blocks).

    Args:
        index, config, teacher, targets, views, caching: as for `cache_views`.
        seconds: to spend; a teacher that takes long for a batch may take more.
        say: told what is being measured.

    Raises:
        ShardError: a label is out of range, or a sample can't be read.
        TeacherError: the teacher can't run, or answers with NaN.
    """
    began = time.monotonic()
    config, block = config.cached, index.block_size
    threads = (caching or CachingConfig()).render_threads or cores()
    encoding = Encoding.of(targets, teacher.num_classes)
    say("starting")
    labelling_index(index, config).check_labels(teacher.num_classes)
    index.verify()
    size = teacher.built.input_size
    teacher(np.zeros((1, size, size, 3), np.uint8))
    teacher.search(len(views) * -(-len(index) // teacher.config.batch_size), at_most=0.25 * seconds)
    startup = time.monotonic() - began
    say("rendering and asking the teacher")
    pace, sample = rehearse(index, config, teacher, encoding, views, threads, max(0.0, 0.75 * seconds - startup))
    # A cache begins with its canaries, rendered one by one.
    startup += COUNT * threads * (pace.decode + pace.render)
    weights, all_of_them = [], encodings(encoding)
    for one in all_of_them:
        say(f"encoding {one.name}")
        weights.append(weigh(one, sample, block, 0.2 * seconds / len(all_of_them)))
    say("writing")
    writing = measure_writing(encoding, sample, block)
    return Measured(pace, sample, weights, writing, startup, threads, time.monotonic() - began)
