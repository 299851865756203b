"""How fast a machine caches: rendering alone, the teacher alone, and both at once as a task does it."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from kdpipe.caching.output_checks import remedy
from kdpipe.caching.task import one_ahead, views_a_step
from kdpipe.errors import TeacherError
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.sampling import SampledOutputs, choose_blocks, choose_views, cut
from kdpipe.shards import BlockReader, Index
from kdpipe.targets import Calibration, Encoding
from kdpipe.targets.quality import quality
from kdpipe.teacher import Teacher, TeacherOutput
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import Rendered, paired_index, render_rows

# What is kept of the sample for weighing its encodings.
_LOGITS_BYTES = 256 * 2**20
# Fewer steps than this have no percentiles.
_STEPS = 5


@dataclass(frozen=True)
class Throughput:
    """Seconds of the parts of a task, each measured alone.

    Attributes:
        decode: of a row, once a step, with all render threads.
        render: of a row and view.
        forward: of a teacher's batch.
        encode: of a row and view, with what is measured of its quality.
        together: what the shorter of rendering and teacher adds to the longer when both run, as a share of it:
            0 where it hides behind it, 1 where they take turns.
        spread: of the time of steps around their mean, which is 1.
        batch: the teacher's, padded.
        group: views of a step, rendered from one decoding.
        read: bytes a second of the shards, when first touched.
    """

    decode: float
    render: float
    forward: Estimate
    encode: float
    together: float
    spread: Estimate
    batch: int
    group: int
    read: float

    def rendering(self, rows: np.ndarray | int, views: int) -> np.ndarray:
        """Of steps with so many rows, rendering alone."""
        return np.asarray(rows * (self.decode + views * self.render))

    def outputs(self, rows: np.ndarray | int, views: int) -> np.ndarray:
        """Of steps with so many rows, teacher and encoding alone."""
        return np.asarray(views * (-(-rows // self.batch) * self.forward.mid + rows * self.encode))

    def steps(self, rows: np.ndarray | int, views: int) -> np.ndarray:
        """Of steps with so many rows, one following the other."""
        parts = self.rendering(rows, views), self.outputs(rows, views)
        return np.asarray(np.maximum(*parts) + self.together * np.minimum(*parts))


def measure_throughput(
    index: Index,
    config: ViewsConfig,
    teacher: Teacher,
    encoding: Encoding,
    views: Sequence[View],
    threads: int,
    seconds: float,
) -> tuple[Throughput, list[SampledOutputs]]:
    """Do the work of a task on a sample of the index, for about so many seconds.

    However slow the teacher, it answers at least on a batch twice.

    Args:
        index, config, teacher, encoding, views: as for caching.
        threads: of rendering.
        seconds: to spend.

    Returns:
        The throughput, and what the teacher said.

    Raises:
        ShardError: a sample can't be read or decoded.
        TeacherError: the teacher answers with NaN or infinity.
    """
    size, batch = teacher.built.input_size, teacher.config.batch_size
    group = views_a_step(index, size)
    blocks, few = choose_blocks(index), choose_views(views, min(4, group))
    reader = BlockReader(paired_index(index, config))
    with ThreadPoolExecutor(threads) as pool:

        def render(rows: range, some: Sequence[View]) -> Rendered:
            return render_rows(reader, config, rows, some, size, pool)

        try:
            read = _reading(index, reader, blocks)
            first = render(blocks[0], few[:1])
            decode, per_view = _rendering(lambda some: render(blocks[0], some), len(blocks[0]), few, 0.1 * seconds)
            forward, encode, calibration = _answering(teacher, encoding, first, 0.1 * seconds)
            unknown = Estimate.exactly(1)
            alone = Throughput(decode, per_view, Estimate.of_times(forward), encode, 1.0, unknown, batch, group, read)
            budget = 0.7 * seconds
            floats = teacher.num_classes + sum(math.prod(feature.shape) for feature in encoding.features)
            pieces, few = _pieces(alone, blocks, few, budget, 4 * floats)

            def ask(rendered: Rendered, view: int) -> TeacherOutput:
                return _ask(teacher, encoding, calibration, rendered, view)

            answered, together, spread = _run(alone, ask, pieces, few, render, budget)
        finally:
            reader.close()
    return replace(alone, together=together, spread=spread), answered


def repeat(function: Callable[[], object], seconds: float, least: int = 2, most: int = 20) -> list[float]:
    """Seconds of each of at least `least` calls, and more until the time is spent."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - began < seconds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def _reading(index: Index, reader: BlockReader, blocks: list[range]) -> float:
    numbers = [index.block_of(rows.start) for rows in blocks]
    took = sum(repeat(lambda n=n: reader.read(n), 0, least=1)[0] for n in numbers)  # type: ignore[misc]
    return float(sum(index.block_stop[n] - index.block_start[n] for n in numbers)) / max(took, 1e-9)


def _rendering(
    render: Callable[[Sequence[View]], object], rows: int, views: Sequence[View], seconds: float
) -> tuple[float, float]:
    """Seconds a row of decoding, and of each view."""
    numbers = [v for v in views if isinstance(v, int)]
    one = float(np.median(repeat(lambda: render(views[:1]), seconds / 2)))
    if len(numbers) < 2:
        return 0.0, one / rows
    several = float(np.median(repeat(lambda: render(numbers), seconds / 2)))
    per_view = min(one, max(0.0, several - one) / (len(numbers) - 1))
    return (one - per_view) / rows, per_view / rows


def _answering(
    teacher: Teacher, encoding: Encoding, rendered: Rendered, seconds: float
) -> tuple[list[float], float, Calibration | None]:
    """Seconds of each of a few forwards of a batch, those of a row's encoding, and a calibration to encode with."""
    pixels = rendered.pixels[0][: teacher.config.batch_size]
    erased = None if rendered.erased[0] is None else rendered.erased[0][: len(pixels)]
    said: list[TeacherOutput] = []

    def ask() -> None:
        said[:] = [teacher(pixels, erased)]
        bool(torch.isfinite(said[0].logits).all())  # waits for the device

    times = repeat(ask, seconds, least=1)
    output = said[0]
    rank = encoding.map.rank if encoding.map else None
    calibration = None
    if rank is not None and output.map is not None:
        calibration = Calibration.fit(output.map.movedim(1, -1).flatten(0, 2), rank)
    labels = torch.from_numpy(rendered.labels[0][: len(output.logits)]).to(teacher.device)

    def encode() -> None:
        quality(output, labels, encoding, encoding.encode(output, labels, calibration), calibration)

    return times, float(np.median(repeat(encode, seconds / 10, least=3))) / len(labels), calibration


def _pieces(
    throughput: Throughput, blocks: list[range], views: list[View], seconds: float, row_bytes: int
) -> tuple[list[range], list[View]]:
    """What of the sample can be answered in time and kept: fewer blocks, then fewer views, then parts of blocks."""
    whole = max(len(rows) for rows in blocks)
    cost = float(throughput.rendering(whole, 1) + throughput.outputs(whole, 1))
    units = min(seconds / max(cost, 1e-9), _LOGITS_BYTES / (whole * row_bytes))
    least = min(2, len(blocks))
    if units < least * len(views):
        views = choose_views(views, 1)
    if units < least * len(views):
        batches = max(1, int(units * -(-whole // throughput.batch) / (least * len(views))))
        whole = min(whole, batches * throughput.batch)
    number = max(least, int(units / len(views)))
    return cut(blocks[:number], whole), views


def _run(
    throughput: Throughput,
    ask: Callable[[Rendered, int], TeacherOutput],
    pieces: list[range],
    views: list[View],
    render: Callable[[range, Sequence[View]], Rendered],
    seconds: float,
) -> tuple[list[SampledOutputs], float, Estimate]:
    """StudentOutput on every piece, and again on the first ones while there is time; `together` and `spread`."""
    costs = [float(throughput.rendering(len(p), len(views)) + throughput.outputs(len(p), len(views))) for p in pieces]
    # A task's number of steps is about this: what warms up and what waits come in as they do there.
    steps = max(len(pieces), min(16, int(seconds / max(1e-9, float(np.mean(costs))))))
    order = [pieces[i % len(pieces)] for i in range(steps)]
    answered: list[SampledOutputs] = []
    marks: list[float] = []
    asked: list[float] = []
    for rows, rendered in one_ahead(order, lambda rows: render(rows, views)):
        marks.append(time.perf_counter())
        said = []
        for view in range(len(views)):
            start = time.perf_counter()
            said.append(ask(rendered, view))
            asked.append((time.perf_counter() - start) / -(-len(rows) // throughput.batch))
        if len(answered) < len(pieces):
            named = [output.parts() for output in said]
            stacked = {name: torch.stack([parts[name] for parts in named]) for name in named[0]}
            answered.append(SampledOutputs(rows, tuple(views), labels=torch.from_numpy(rendered.labels), **stacked))
    took = np.diff(marks)
    parts = np.array(
        [
            (float(throughput.rendering(len(after), len(views))), float(throughput.outputs(len(before), len(views))))
            for before, after in itertools.pairwise(order)
        ]
    ).reshape(-1, 2)
    longer, shorter = parts.max(axis=1), parts.min(axis=1)
    together = float((took - longer).sum() / max(shorter.sum(), 1e-9)) if len(took) else 1.0
    # A few long steps don't show how the machine's speed varies; the answers within them do.
    varied = took / (longer + together * shorter) if len(took) >= _STEPS else np.array(asked)
    return answered, together, Estimate.of_times((varied / varied.mean()).tolist())


def _ask(
    teacher: Teacher, encoding: Encoding, calibration: Calibration | None, rendered: Rendered, view: int
) -> TeacherOutput:
    """What a task does with a view; returns the answer on its rows, on the CPU."""
    labels = torch.from_numpy(rendered.labels[view]).to(teacher.device)
    output: TeacherOutput = teacher(rendered.pixels[view], rendered.erased[view])
    if not all(bool(torch.isfinite(said).all()) for said in output.parts().values()):
        raise TeacherError("the teacher answered with NaN or infinity", do=remedy(teacher.config.amp_dtype))
    quality(output, labels, encoding, encoding.encode(output, labels, calibration), calibration)
    return TeacherOutput(**{name: said.cpu() for name, said in output.parts().items()})
