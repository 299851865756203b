"""How fast a machine caches: some steps of a task, done as a task does them, on a sample of the index."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kdpipe.caching.output_checks import remedy
from kdpipe.caching.task import one_ahead, views_a_step
from kdpipe.errors import TeacherError
from kdpipe.estimate.interval import Estimate
from kdpipe.estimate.sampling import SampledOutputs, choose_blocks, choose_views
from kdpipe.shards import BlockReader, Index
from kdpipe.targets import Calibration, Encoding
from kdpipe.targets.quality import quality
from kdpipe.teacher import Teacher, TeacherOutput
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import Rendered, paired_index, render_rows

# Of the outputs that are kept to measure sizes with, and of their views.
_SAMPLE_BYTES, _KEPT = 64 * 2**20, 4
# More steps show nothing new; fewer than _SPREAD show no spread, but the forwards within them do.
_STEPS, _SPREAD = 16, 5


@dataclass(frozen=True)
class Throughput:
    """Seconds of a batch of the teacher: one view of so many rows.

    Attributes:
        whole: rendering, forward and encoding, side by side as in a task.
        render: of that, rendering, in the background.
        forward: of that, the teacher.
        encode: of that, encoding, with measuring what the encoding loses.
        batch: rows of a batch.
        views: that were rendered from one decoding.
    """

    whole: Estimate
    render: float
    forward: Estimate
    encode: float
    batch: int
    views: int


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

    However slow the teacher, a batch of two blocks is done (of two halves of the only block).

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
    blocks, batch = choose_blocks(index), teacher.config.batch_size
    with ThreadPoolExecutor(threads) as pool:
        work = _Work(index, config, teacher, encoding, pool)
        try:
            for _ in range(2):  # the first time allocates
                work.output(work.render(blocks[0][:batch], views[:1]), 0)
            # A part of the time is for doing steps again: their mean is what is multiplied.
            affordable = 0.4 * seconds / sum(times[-1] for times in work.times.values())
            pieces, some = _pieces(blocks, views, views_a_step(index, teacher.built.input_size), batch, affordable)
            work.times = {name: [] for name in work.times}
            sample, steps = _steps(work, pieces, some, seconds)
        finally:
            work.reader.close()
    forward, whole = Estimate.of(work.times["forward"]), Estimate.of(steps)
    if len(steps) < _SPREAD:
        whole = forward * (whole.mid / forward.mid)
    render, encode = (Estimate.of(work.times[name]).mid for name in ("render", "encode"))
    return Throughput(whole, render, forward, encode, batch, len(some)), sample


class _Work:
    """The parts of a task; `times` has the seconds a batch of each call."""

    def __init__(
        self, index: Index, config: ViewsConfig, teacher: Teacher, encoding: Encoding, pool: ThreadPoolExecutor
    ) -> None:
        self.reader = BlockReader(paired_index(index, config))
        self._config, self._teacher, self._encoding, self._pool = config, teacher, encoding, pool
        self._calibration: Calibration | None = None
        self.times: dict[str, list[float]] = {"render": [], "forward": [], "encode": []}

    def batches(self, rows: int) -> int:
        """Of the teacher, for a view of so many rows."""
        return -(-rows // self._teacher.config.batch_size)

    @contextmanager
    def _timed(self, name: str, batches: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times[name].append((time.perf_counter() - start) / batches)

    def render(self, rows: range, views: Sequence[View]) -> Rendered:
        """Views of rows of one block."""
        with self._timed("render", self.batches(len(rows)) * len(views)):
            return render_rows(self.reader, self._config, rows, views, self._teacher.built.input_size, self._pool)

    def output(self, rendered: Rendered, view: int) -> dict[str, torch.Tensor]:
        """The teacher's outputs on a view, on the CPU; they are encoded as in a task."""
        encoding, batches = self._encoding, self.batches(rendered.labels.shape[1])
        with self._timed("forward", batches):
            output: TeacherOutput = self._teacher(rendered.pixels[view], rendered.erased[view])
            if not all(bool(torch.isfinite(x).all()) for x in output.parts().values()):  # waits for the device
                raise TeacherError("an output is NaN or infinite", do=remedy(self._teacher.config.amp_dtype))
        labels = torch.from_numpy(rendered.labels[view]).to(self._teacher.device)
        if self._calibration is None and encoding.map is not None and output.map is not None:
            self._calibration = Calibration.fit(output.map.movedim(1, -1).flatten(0, 2), encoding.map.rank)
        with self._timed("encode", batches):
            quality(output, labels, encoding, encoding.encode(output, labels, self._calibration), self._calibration)
        return {name: x.cpu() for name, x in output.parts().items()}


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
    began, kept = time.perf_counter(), [int(v) for v in choose_views(range(len(views)), _KEPT)]
    sample: list[SampledOutputs] = []
    marks: list[float] = []

    def order() -> Iterator[range]:
        for number in range(max(len(pieces), _STEPS)):
            if number < len(pieces) or time.perf_counter() - began < seconds:
                yield pieces[number % len(pieces)]

    batches = []
    for rows, rendered in one_ahead(order(), lambda rows: work.render(rows, views)):
        marks.append(time.perf_counter())
        batches.append(work.batches(len(rows)) * len(views))
        outputs = [work.output(rendered, view) for view in range(len(views))]
        if len(sample) < len(pieces):
            # Of some of the views, and of as many of the rows as there is memory for.
            row = 4 * len(kept) * len(pieces) * sum(math.prod(x.shape[1:]) for x in outputs[0].values())
            few = slice(max(1, _SAMPLE_BYTES // row))
            stacked = {name: torch.stack([outputs[v][name][few] for v in kept]) for name in outputs[0]}
            labels = torch.from_numpy(rendered.labels[kept, few])
            sample.append(SampledOutputs(rows[few], tuple(views[v] for v in kept), labels=labels, **stacked))
    marks.append(time.perf_counter())
    times = [(stop - start) / n for (start, stop), n in zip(itertools.pairwise(marks), batches, strict=True)]
    return sample, times[:-1] or times  # beside the last step nothing is rendered
