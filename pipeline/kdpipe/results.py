"""Results of the functions of `kdpipe`: frozen dataclasses, read from the JSON documents that the commands print."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def of(kind: type[T], document: dict[str, Any]) -> T:
    """A result from its JSON document; keys that the result has no field for are left out."""
    return TypeAdapter(kind).validate_python(document)


@dataclass(frozen=True)
class CacheReport:
    """Result of `cache_teacher`: what the run did, and what the cache now has of the requested views.

    Attributes:
        cache: folder or URL.
        cached: complete views, as in --views.
        input_size: render size, pixels.
        tasks: done by this run; `skipped`: done before; `failed`: one line each.
        views: of the requested ones, how many are cached: samples times views.
        encoding: name of the encoding.
        retained_mass: mean teacher probability within the top k; None without logits.
        encoding_loss: mean KL(teacher || cached), nats; None without logits.
        teacher_top1, teacher_top5: the teacher's accuracy on the labelled ones of these views; None without labels.
        pooled_error, map_error: mean relative squared error of features; None where not cached.
        bytes: stored for these views.
        seconds: of the run.
        root: digest of the cache's identity and finished tasks; equal for equal content.
        remarks: signs that the teacher is poor, one line each.
    """

    cache: str
    cached: str
    input_size: int
    tasks: int
    skipped: int
    views: int
    encoding: str
    retained_mass: float | None
    encoding_loss: float | None
    teacher_top1: float | None
    teacher_top5: float | None
    pooled_error: float | None
    map_error: float | None
    bytes: int
    seconds: float
    root: str
    failed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no task failed."""
        return not self.failed


@dataclass(frozen=True)
class SegmentReport:
    """One segment of a cache: some views in one encoding.

    Attributes:
        name: folder below segments/.
        span: its views, as in --views.
        shards_done, shards: finished and all tasks.
        missing: names of the shards without a finished task.
        bytes: by array.
        views: cached: samples times views. The other values are as in `CacheReport`, over these.
    """

    name: str
    span: str
    shards_done: int
    shards: int
    missing: tuple[str, ...]
    bytes: dict[str, int]
    views: int
    retained_mass: float | None
    encoding_loss: float | None
    teacher_top1: float | None
    teacher_top5: float | None


@dataclass(frozen=True)
class ViewReport:
    """The teacher's outputs on one view of a segment.

    Attributes:
        segment, view: which.
        views: how many were read; `labelled`: those with a label, None without an index.
        teacher_top1, teacher_top5: accuracy over the labelled ones.
        ece: expected calibration error, 15 bins (Guo et al. 2017, equation 3).
        mean_confidence: mean of the largest probability.
        mean_entropy: nats.
        retained_mass: by k, mean probability of the first k classes.
    """

    segment: str
    view: int | str
    views: int
    labelled: int | None
    teacher_top1: float | None
    teacher_top5: float | None
    ece: float | None
    mean_confidence: float
    mean_entropy: float
    retained_mass: dict[int, float]


@dataclass(frozen=True)
class Contradiction:
    """A sample whose label has a low probability; `p` is that of the predicted class, over its unmixed views."""

    shard: str
    key: str
    label: int
    predicted: int
    p: float
    p_label: float


@dataclass(frozen=True)
class CacheDescription:
    """Result of `inspect`.

    Attributes:
        cache: folder or URL.
        root: as in `CacheReport`.
        identity: all that decides the cached numbers; see docs/cache-format.md.
        samples: of its shards.
        complete_views: as in --views.
        complete: whether every segment has all of its tasks.
        bytes: of all arrays.
        segments: in the order of their numbers.
        views: statistics of the outputs; empty if they were not read.
        contradictions: the most confident first; empty without labels.
        remark: what was left out, and why; None if nothing.
    """

    cache: str
    root: str
    identity: dict[str, Any] = field(repr=False)
    samples: int
    complete_views: str
    complete: bool
    bytes: int
    segments: tuple[SegmentReport, ...]
    views: tuple[ViewReport, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    remark: str | None = None


@dataclass(frozen=True)
class Scores:
    """Result of `evaluate`; see `kdpipe.evaluation.evaluate` for the definitions.

    Attributes:
        samples, labelled: counts.
        top1, top5: accuracy over the labelled samples, 0 to 1; None without labels, as the next two.
        nll: mean -log p(label), nats.
        ece: expected calibration error, 15 bins.
        agreement_top1, agreement_top5: share of samples whose first, or first five, classes have the teacher's first.
        kl: mean KL(teacher || model), nats. These three are None unless compared with a cache.
    """

    samples: int
    labelled: int
    top1: float | None
    top5: float | None
    nll: float | None
    ece: float | None
    agreement_top1: float | None = None
    agreement_top5: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class TrainReport:
    """Result of `train`.

    Attributes:
        student, loss: names.
        epochs, steps, samples: epochs and steps of the run, samples of an epoch.
        train: means of the loss and its parts over the last epoch, by name.
        validation: scores after the last epoch; None without validation samples.
        best_epoch: the epoch of `weights`; `best` are its scores.
        weights: file of the best epoch, which `evaluate` takes.
        seconds: of the run, all of its parts.
    """

    student: str
    loss: str
    epochs: int
    steps: int
    samples: int
    train: dict[str, float]
    validation: Scores | None
    best_epoch: int
    best: Scores | None
    weights: Path
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A damaged file: `where`, and `what` is wrong with it."""

    where: str
    what: str


@dataclass(frozen=True)
class Integrity:
    """Files, bytes and commits that were checked, and the problems found."""

    files: int
    bytes: int
    commits: int
    problems: tuple[Problem, ...]
    ok: bool


@dataclass(frozen=True)
class Canaries:
    """Reference views that were rendered again: how many, and what differs; None if nothing does."""

    ok: bool
    views: int = 0
    what: str | None = None


@dataclass(frozen=True)
class Failure:
    """A batch whose cached values are further from the live teacher's than the tolerance, in one group of arrays."""

    where: str
    group: str
    difference: float


@dataclass(frozen=True)
class Truth:
    """Cached outputs against the live teacher's; see `kdpipe.verification.check_truth`.

    Attributes:
        views: compared.
        difference: the largest between cached and live log-probabilities beyond rounding, nats; None without logits, as
            the next three.
        control: the largest between two live runs; `tolerance`: the largest permitted difference.
        truncation, quantisation: mean KL that top-k and rounding cost, nats.
        failures: batches beyond the tolerance.
        reasons: why nothing can be right; `remarks`: what was not compared.
    """

    ok: bool
    views: int
    difference: float | None
    control: float | None
    tolerance: float | None
    truncation: float | None
    quantisation: float | None
    failures: tuple[Failure, ...]
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        ok: whether nothing is wrong with what was checked.
        integrity: of every file.
        canaries, truth: None if the teacher was not run.
    """

    cache: str
    ok: bool
    integrity: Integrity
    canaries: Canaries | None = None
    truth: Truth | None = None
