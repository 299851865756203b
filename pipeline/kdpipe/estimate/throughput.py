"""How fast a machine caches: some steps of a task, done as a task does them, on a sample of the index."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from kdpipe.caching.task import one_ahead, views_a_step
from kdpipe.errors import TeacherError
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.sampling import SampledOutputs, choose_blocks, choose_views
from kdpipe.shards import BlockReader, Index
from kdpipe.targets import Calibration, Encoding, quality
from kdpipe.teacher import Teacher, TeacherOutput
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import Rendered, paired_index, render_rows

# Of the outputs that are kept to measure sizes with.
_SAMPLE_BYTES = 64 * 2**20
# Views of a row that are kept, and steps beyond which more show nothing new.
_KEPT, _STEPS = 4, 16
# Fewer steps than this show no spread; the forwards within them do.
_SPREAD = 5


@dataclass(frozen=True)
class Throughput:
    """Seconds of a batch of the teacher: one view of so many rows.

    Attributes:
        whole: rendering, forward and encoding, side by side as in a task.
        render: of that, rendering, which goes on in the background.
        forward: of that, the teacher.
        encode: of that, encoding, with measuring what the encoding loses.
        batch: rows of a batch.
        views: that were rendered from one decoding.
        read: bytes a second of the shards, when first read.
    """

    whole: Estimate
    render: float
    forward: Estimate
    encode: float
    batch: int
    views: int
    read: float


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

    However slow the teacher, a batch of two blocks is done (of the only block, where there is one).

    Args:
        index, config, teacher, encoding, views: as for caching.
        threads: of rendering.
        seconds: to spend.

    Returns:
        The throughput, and the teacher's outputs on the sample.

    Raises:
        ShardError: a sample can't be read or decoded.
        TeacherError: an output is NaN or infinite.
    """
    blocks = choose_blocks(index)
    with ThreadPoolExecutor(threads) as pool:
        work = _Work(index, config, teacher, encoding, pool)
        try:
            read = _reading(index, work.reader, blocks)
            for _ in range(2):  # the first time allocates
                work.output(work.render(blocks[0][: work.batch], views[:1]), 0)
            affordable = seconds / (work.rendering[-1] + work.forward[-1] + work.encoding[-1])
            pieces, some = _pieces(blocks, views, views_a_step(index, work.size), work.batch, affordable)
            work.restart()
            sample, whole = _steps(work, pieces, some, seconds)
        finally:
            work.reader.close()
    forward, step = Estimate.of(work.forward), Estimate.of(whole)
    if len(whole) < _SPREAD:
        step = forward * (step.mid / forward.mid)
    render, encode = (sum(times) / len(times) for times in (work.rendering, work.encoding))
    return Throughput(step, render, forward, encode, work.batch, len(some), read), sample


class _Work:
    """The parts of a task, timed: seconds a batch of each call of `render` and `output`."""

    def __init__(
        self, index: Index, config: ViewsConfig, teacher: Teacher, encoding: Encoding, pool: ThreadPoolExecutor
    ) -> None:
        self.reader, self.size, self.batch = (
            BlockReader(paired_index(index, config)),
            teacher.built.input_size,
            teacher.config.batch_size,
        )
        self._config, self._teacher, self._encoding, self._pool = config, teacher, encoding, pool
        self._calibration: Calibration | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the times so far."""
        self.rendering: list[float] = []
        self.forward: list[float] = []
        self.encoding: list[float] = []

    def batches(self, rows: Sized) -> int:
        """Of the teacher, for a view of so many rows."""
        return -(-len(rows) // self.batch)

    def render(self, rows: range, views: Sequence[View]) -> Rendered:
        """Views of rows of one block."""
        start = time.perf_counter()
        rendered = render_rows(self.reader, self._config, rows, views, self.size, self._pool)
        self.rendering.append((time.perf_counter() - start) / (self.batches(rows) * len(views)))
        return rendered

    def output(self, rendered: Rendered, view: int) -> TeacherOutput:
        """The teacher's outputs on a view, on the CPU; they are encoded as in a task."""
        start = time.perf_counter()
        output: TeacherOutput = self._teacher(rendered.pixels[view], rendered.erased[view])
        if not all(bool(torch.isfinite(x).all()) for x in output.parts().values()):  # waits for the device
            raise TeacherError("an output is NaN or infinite", do="Use --amp-dtype bfloat16 or float32")
        between = time.perf_counter()
        encoding, batches = self._encoding, self.batches(output.logits)
        self.forward.append((between - start) / batches)
        labels = torch.from_numpy(rendered.labels[view]).to(self._teacher.device)
        if self._calibration is None and encoding.map is not None and output.map is not None:
            self._calibration = Calibration.fit(output.map.movedim(1, -1).flatten(0, 2), encoding.map.rank)
            between = time.perf_counter()
        quality(output, labels, encoding, encoding.encode(output, labels, self._calibration), self._calibration)
        self.encoding.append((time.perf_counter() - between) / batches)
        return TeacherOutput(**{name: x.cpu() for name, x in output.parts().items()})


def _reading(index: Index, reader: BlockReader, blocks: list[range]) -> float:
    numbers = [index.block_of(rows.start) for rows in blocks]
    start = time.perf_counter()
    for number in numbers:
        reader.read(number)
    size = float(sum(index.block_stop[n] - index.block_start[n] for n in numbers))
    return size / max(time.perf_counter() - start, 1e-9)


def _pieces(
    blocks: list[range], views: Sequence[View], group: int, batch: int, affordable: float
) -> tuple[list[range], list[View]]:
    """Rows and views of the steps, of about so many batches: fewer blocks, then fewer views, then parts of blocks."""
    if len(blocks) == 1 and len(blocks[0]) > 1:
        half = -(-len(blocks[0]) // 2)
        blocks = [blocks[0][:half], blocks[0][half:]]
    least, whole = min(2, len(blocks)), -(-max(map(len, blocks)) // batch)
    count = max(1, min(group, len(views), int(affordable / (least * whole))))
    rows = max(1, min(whole, int(affordable / (least * count)))) * batch
    number = max(least, int(affordable / (whole * count)))
    return [block[:rows] for block in blocks[:number]], choose_views(views, count)


def _steps(
    work: _Work, pieces: list[range], views: list[View], seconds: float
) -> tuple[list[SampledOutputs], list[float]]:
    """Steps as a task does them, each piece once and again while there is time: outputs, and seconds a batch."""
    kept = choose_views(range(len(views)), _KEPT)
    sample: list[SampledOutputs] = []
    marks: list[float] = []
    began = time.perf_counter()

    def order() -> Iterator[range]:
        for number in range(max(len(pieces), _STEPS)):
            if number < len(pieces) or time.perf_counter() - began < seconds:
                yield pieces[number % len(pieces)]

    done: list[range] = []
    for rows, rendered in one_ahead(order(), lambda rows: work.render(rows, views)):
        marks.append(time.perf_counter())
        done.append(rows)
        outputs = [work.output(rendered, view) for view in range(len(views))]
        if len(sample) < len(pieces):
            sample.append(_kept(rows, views, rendered, outputs, [int(v) for v in kept], len(pieces)))
    marks.append(time.perf_counter())
    batches = [work.batches(rows) * len(views) for rows in done]
    times = [(stop - start) / n for (start, stop), n in zip(itertools.pairwise(marks), batches, strict=True)]
    # Beside the last step nothing is rendered.
    return sample, times[:-1] or times


def _kept(
    rows: range, views: list[View], rendered: Rendered, outputs: list[TeacherOutput], kept: list[int], pieces: int
) -> SampledOutputs:
    """Of some of the views, and of as many of the rows as there is memory for."""
    some = [outputs[view].parts() for view in kept]
    row = sum(4 * math.prod(x.shape[1:]) for x in some[0].values())
    most = max(1, _SAMPLE_BYTES // (row * len(kept) * pieces))
    stacked = {name: torch.stack([parts[name][:most] for parts in some]) for name in some[0]}
    labels = torch.from_numpy(rendered.labels[kept][:, :most])
    return SampledOutputs(rows[:most], tuple(views[view] for view in kept), labels=labels, **stacked)
