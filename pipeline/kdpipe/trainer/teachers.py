"""The caches of a run: opened, matched with its samples and student, decoded for its steps."""

from collections.abc import Callable, Sequence
from typing import Any

from kdpipe._util.fingerprint import fingerprint
from kdpipe._util.redact import redact
from kdpipe.cache import CacheReader, MultiCacheReader, Want
from kdpipe.cache.manifest import open_reader
from kdpipe.caching.identity import check_readers_canaries
from kdpipe.errors import ConfigError, IdentityError, TargetsError, TrainingError
from kdpipe.loader import Batch, LoaderConfig
from kdpipe.losses import LossConfig, TeacherInfo, average
from kdpipe.models import ModelSpec
from kdpipe.shards import Index
from kdpipe.targets import Targets, mix_targets
from kdpipe.trainer.step import TargetsOf
from kdpipe.views import ViewsConfig

Log = Callable[[str], None]


class Teachers:
    """One or several caches, or none.

    Args:
        caches: folders, URLs or records.
        index, views: the samples and the policy, which must be the caches' own.
        loss: what is asked of them.
        loader: how close their canaries must be.
        num_classes: the student's, where it is known.
        log: told remarks.
        begun: `identity` of the run to go on with: it keeps its encodings and views, if all of them are there; else
            its identity will differ.
        trust: which names of models the caches may give, see `require_trusted`.

    Attributes:
        readers: one a cache.
        reader: what the loader reads; None without a cache.

    Raises:
        TrainingError: no cache where the loss needs one.
        IdentityError, CacheError, TargetsError, ViewError: a cache doesn't serve this.
    """

    def __init__(
        self,
        caches: Sequence[str],
        index: Index,
        views: ViewsConfig,
        loss: LossConfig,
        loader: LoaderConfig,
        num_classes: int | None,
        log: Log,
        begun: Sequence[dict[str, Any]] = (),
        trust: tuple[str, ...] = (),
    ) -> None:
        self._loss, self._views, needs = loss, views, loss.requirements
        self.readers: list[CacheReader] = []
        self._canaries: list[dict[str, Any]] = []
        if not needs.targets:
            if caches:
                log(f"loss {loss.name} takes nothing from a teacher: the cache is not read")
        elif not caches:
            raise TrainingError(
                f"loss {loss.name} needs a teacher's targets",
                do="Pass --cache (kdpipe cache-teacher makes one), or --loss none",
            )
        elif needs.features and views.mixes and views.mix == "targets":
            raise TargetsError(
                "of a mixed view a teacher's feature is no mixture of features",
                where="views.mix",
                found="targets",
                allowed="images, which the teacher then sees mixed",
            )
        else:
            weights = loss.teacher_weights
            if weights and (len(weights) != len(caches) or min(weights) <= 0):
                raise ConfigError(
                    "each cache has a weight above 0",
                    where="loss.teacher_weights",
                    found=list(weights),
                    allowed=f"{len(caches)} numbers",
                )
            wrapping = [one.name for one in loss.losses if one.wraps_student]
            if len(caches) > 1 and wrapping:
                raise TargetsError(
                    f"{wrapping[0]} changes the student for one teacher: it can't learn from several",
                    where="--cache",
                    found=f"{len(caches)} caches",
                    allowed=1,
                    do="Pass one --cache, or use another loss: kd+fd with loss.teachers=sum",
                )
            if len(caches) > 1 and needs.features and loss.teachers == "average":
                raise TargetsError(
                    "features of several teachers have no mean",
                    where="loss.teachers",
                    found="average",
                    allowed="sum: a loss for each teacher",
                    do="Pass --set loss.teachers=sum",
                )
            want = Want.of(needs)
            before = begun if len(begun) == len(caches) else [None] * len(caches)
            for where, was in zip(caches, before, strict=True):
                encodings = None if was is None else was["encodings"]
                reader = open_reader(
                    where, index, views, want=want, num_classes=num_classes, begun=encodings, trust=trust
                )
                if was is not None and encodings == reader.selection.json() and set(was["views"]) <= set(reader.views):
                    reader.keep(was["views"])
                self.readers.append(reader)
                asked = "canary_tolerance" in loader.model_fields_set
                report = check_readers_canaries(
                    reader.cache, index, views, loader.canary_tolerance, required=asked, log=log
                )
                self._canaries.append(report)
        self.reader = self._joined()

    @property
    def targets_of(self) -> TargetsOf | None:
        """How a step gets targets, see `targets_of`; None without a cache."""
        weights = None if self._sums else self._loss.teacher_weights
        return None if self.reader is None else targets_of(self.reader, weights)

    def info(self) -> list[TeacherInfo]:
        """What adapters must know: of each teacher where there is a loss for each, else of one."""
        needs, found = self._loss.requirements, []
        for reader in self.readers if self._sums else self.readers[:1]:
            shapes = {f.name: f.shape for source in reader.selection.sources for f in source.encoding.features}
            final = shapes.get("map") if needs.map else None
            calibration = reader.calibration()
            found.append(
                TeacherInfo(
                    num_classes=reader.num_classes,
                    pooled=shapes["pooled"][0] if needs.pooled else 0,
                    map=None if final is None else (final[2], final[0], final[1]),
                    mean=None if calibration is None else calibration.mean,
                    std=None if calibration is None else calibration.std,
                    head=reader.head if needs.head else None,
                    tail=reader.tail if needs.tail else None,
                )
            )
        return found

    def fit(self, built: ModelSpec, log: Log) -> list[dict[str, Any]]:
        """Of each cache, whether the student sees what the teacher saw, and if not, what is the same.

        Returns:
            `student`, `teacher`: their sizes; `canaries`: how many were compared, or "unchecked"; `exact`, which
            is None then; `shared` and `own` where sizes differ.

        Raises:
            IdentityError: numbers of classes differ.
        """
        return [self._fit(*pair, built, log) for pair in zip(self.readers, self._canaries, strict=True)]

    def remarks(self) -> list[str]:
        """What a user should know of what is read, and of the parts of teachers that are in memory."""
        said = [
            f"{redact(reader.url)}: log-probabilities come from {reader.encoding.name} through the teacher's classifier"
            for reader in self.readers
            if reader.selection.by_head
        ]
        for reader in self.readers:
            others = ", ".join(reader.selection.unread)
            if others:
                read = " and ".join(source.encoding.name for source in reader.selection.sources)
                how = "a record of it (kdpipe cache-teacher --manifest FILE) as --cache would have it read"
                said.append(f"{redact(reader.url)}: {read} is read, and not {others}; {how}")
        needs, own = self._loss.requirements, [o.name for o in self._loss.losses if o.wraps_student]
        if self._loss.taps and (own or not needs.maps):
            said.append(f"loss.taps has no effect: {self._loss.name} takes no map of the student's own")
        said += [line for line in map(self._held, self.readers) if line]
        if needs.tail and self._views.mixes:
            said.append("mixup and cutmix are no part of the recipes that scalekd was published with")
        return said

    def identity(self) -> list[dict[str, Any]]:
        """What of the caches decides the trained weights."""
        return [
            {
                "identity": fingerprint(reader.cache.identity),
                "encodings": reader.selection.json(),
                "views": [v for v in reader.views if isinstance(v, int)],
            }
            for reader in self.readers
        ]

    def _held(self, reader: CacheReader) -> str | None:
        """What of a cache's teacher is in memory; None where nothing is."""
        needs, parts = self._loss.requirements, {}
        if needs.tail:
            parts["last stage"] = reader.tail.resident
        if needs.head or reader.selection.by_head:
            parts["classifier"] = sum(p.numel() for p in reader.head.parameters())
        if not parts:
            return None
        model, total = reader.cache.identity["teacher"]["model"], sum(parts.values())
        each = " and ".join(f"its {name} ({count:,})" for name, count in parts.items())
        return f"{total:,} numbers of {model} are in memory, frozen: {each}, and nothing else of it"

    @property
    def _sums(self) -> bool:
        return len(self.readers) > 1 and self._loss.teachers == "sum"

    def _joined(self) -> CacheReader | MultiCacheReader | None:
        if len(self.readers) > 1:
            return MultiCacheReader(self.readers)
        return self.readers[0] if self.readers else None

    def _fit(self, reader: CacheReader, canaries: dict[str, Any], built: ModelSpec, log: Log) -> dict[str, Any]:
        views, size = self._views, reader.cache.size
        if built.num_classes != reader.num_classes:
            raise IdentityError(
                "student and cached teacher have different numbers of classes",
                where=reader.url,
                found=built.num_classes,
                allowed=reader.num_classes,
                do="Set student.num_classes to the teacher's",
            )
        compared = canaries["views"]
        report: dict[str, Any] = {
            "student": built.input_size,
            "teacher": size,
            "exact": not canaries["levels"] if compared else None,
            "canaries": compared or "unchecked",
        }
        if views.mix == "targets" and views.mixes:
            log("mix targets: the student sees mixed views whose parts the teacher saw one by one")
            report["exact"] = False
        if built.input_size != size:
            shared, own = views.across_sizes()
            log(
                f"student sees {built.input_size} pixels a side, the teacher saw {size}: views share "
                f"{', '.join(shared)}; each has its own {', '.join(own)}"
            )
            report |= {"exact": False, "shared": shared, "own": own}
        return report


def targets_of(reader: CacheReader | MultiCacheReader, weights: Sequence[float] | None = ()) -> TargetsOf:
    """How a step gets targets from a cache: decoded on the device where the batch is.

    Args:
        reader: of one teacher or several.
        weights: of several, for their mean; None for a tuple with each teacher's own.
    """

    def one(fields: dict[str, Any]) -> Any:
        said = reader.decode(fields)
        return said if isinstance(said, Targets) or weights is None else average(said, weights)

    def of(batch: Batch) -> Any:
        own = one(batch.targets)
        if not batch.partner_targets or batch.lam is None:
            return own
        other = one(batch.partner_targets)
        if isinstance(own, Targets):
            return mix_targets(own, other, batch.lam, batch.labels)
        return tuple(mix_targets(a, b, batch.lam, batch.labels) for a, b in zip(own, other, strict=True))

    return of
