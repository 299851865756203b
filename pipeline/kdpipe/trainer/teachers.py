"""The caches of a run: opened, matched with its samples and student, decoded for its steps."""

from collections.abc import Callable, Sequence
from typing import Any

from kdpipe._util.fingerprint import fingerprint
from kdpipe._util.redact import redact
from kdpipe.cache import CacheReader, CacheRequest, MultiCacheReader
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
        caches: folders, URLs or manifests.
        index, views: the samples and the policy, which must be the caches' own.
        loss: its requirements select what is read.
        loader: its tolerance for the caches' canaries.
        num_classes: the student's, where it is known.
        log: takes remarks.
        resumed: `identity` of the run that is resumed: it keeps its encodings and views, if all of them are there; else
            its identity will differ.
        trust: names of models that the caches may give, see `require_trusted`.

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
        resumed: Sequence[dict[str, Any]] = (),
        trust: tuple[str, ...] = (),
    ) -> None:
        self._loss, self._views, requirements = loss, views, loss.requirements
        self.readers: list[CacheReader] = []
        self._canaries: list[dict[str, Any]] = []
        if not requirements.targets:
            if caches:
                log(f"loss {loss.name} takes nothing from a teacher: the cache is not read")
        elif not caches:
            raise TrainingError(
                f"loss {loss.name} needs a teacher's targets",
                do="Pass --cache (kdpipe cache-teacher makes one), or --loss none",
            )
        elif requirements.features and views.mixes and views.mix == "targets":
            raise TargetsError(
                "a teacher's feature of a mixed view is not the mixture of two features",
                where="views.mix",
                found="targets",
                allowed="images: the teacher then sees mixed images",
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
            wrapping = [one.name for one in loss.losses if one.Config.wraps_student]
            if len(caches) > 1 and wrapping:
                raise TargetsError(
                    f"{wrapping[0]} changes the student for one teacher: it can't learn from several",
                    where="--cache",
                    found=f"{len(caches)} caches",
                    allowed=1,
                    do="Pass one --cache, or use another loss: kd+fd with loss.teachers=sum",
                )
            if len(caches) > 1 and requirements.features and loss.teachers == "average":
                raise TargetsError(
                    "features of several teachers have no mean",
                    where="loss.teachers",
                    found="average",
                    allowed="sum: a loss for each teacher",
                    do="Pass --set loss.teachers=sum",
                )
            want = CacheRequest.of(requirements)
            before = resumed if len(resumed) == len(caches) else [None] * len(caches)
            for where, was in zip(caches, before, strict=True):
                encodings = None if was is None else was["encodings"]
                reader = open_reader(
                    where, index, views, request=want, num_classes=num_classes, resumed=encodings, trust=trust
                )
                if was is not None and encodings == reader.selection.json() and set(was["views"]) <= set(reader.views):
                    reader.keep(was["views"])
                self.readers.append(reader)
                chosen = "canary_tolerance" in loader.model_fields_set
                report = check_readers_canaries(
                    reader.cache, index, views, loader.canary_tolerance, required=chosen, log=log
                )
                self._canaries.append(report)
        self.reader = self._joined()

    @property
    def targets_of(self) -> TargetsOf | None:
        """How a step gets targets, see `targets_of`; None without a cache."""
        weights = None if self._sums else self._loss.teacher_weights
        return None if self.reader is None else targets_of(self.reader, weights)

    def info(self) -> list[TeacherInfo]:
        """What adapters need to know of each teacher where there is a loss for each, else of the first."""
        requirements, found = self._loss.requirements, []
        for reader in self.readers if self._sums else self.readers[:1]:
            shapes = {f.name: f.shape for source in reader.selection.sources for f in source.encoding.features}
            final = shapes.get("map") if requirements.map else None
            calibration = reader.calibration()
            found.append(
                TeacherInfo(
                    num_classes=reader.num_classes,
                    pooled=shapes["pooled"][0] if requirements.pooled else 0,
                    map=None if final is None else (final[2], final[0], final[1]),
                    mean=None if calibration is None else calibration.mean,
                    std=None if calibration is None else calibration.std,
                    head=reader.head if requirements.head else None,
                    tail=reader.tail if requirements.tail else None,
                )
            )
        return found

    def fit(self, built: ModelSpec, log: Log) -> list[dict[str, Any]]:
        """Whether the student sees the same views as each cache's teacher, and if not, which parts are the same.

        Returns:
            `student`, `teacher`: their sizes; `canaries`: how many were compared, or "unchecked"; `exact`, which
            is None then; `shared` and `own` where sizes differ.

        Raises:
            IdentityError: numbers of classes differ.
        """
        return [self._fit(*pair, built, log) for pair in zip(self.readers, self._canaries, strict=True)]

    def remarks(self) -> list[str]:
        """Remarks for the user: what is read of the caches, and which parts of teachers are in memory."""
        remarks = [
            f"{redact(reader.url)}: log-probabilities come from {reader.encoding.name} through the teacher's classifier"
            for reader in self.readers
            if reader.selection.by_head
        ]
        for reader in self.readers:
            others = ", ".join(reader.selection.unread)
            if others:
                read = " and ".join(source.encoding.name for source in reader.selection.sources)
                how = "to read it, pass a manifest of it (kdpipe cache-teacher --manifest FILE) as --cache"
                remarks.append(f"{redact(reader.url)}: {read} is read, and not {others}; {how}")
        requirements, own = self._loss.requirements, [o.name for o in self._loss.losses if o.Config.wraps_student]
        if self._loss.student_layers and (own or not requirements.maps):
            remarks.append(f"loss.student_layers has no effect: {self._loss.name} takes no map of the student's own")
        remarks += [line for line in map(self._held, self.readers) if line]
        if requirements.tail and self._views.mixes:
            remarks.append("scalekd was published without mixup and cutmix")
        return remarks

    def identity(self) -> list[dict[str, Any]]:
        """What the trained weights depend on: each cache, its encodings and views."""
        return [
            {
                "identity": fingerprint(reader.cache.identity),
                "encodings": reader.selection.json(),
                "views": [v for v in reader.views if isinstance(v, int)],
            }
            for reader in self.readers
        ]

    def _held(self, reader: CacheReader) -> str | None:
        """Which parts of a cache's teacher are in memory; None where there are none."""
        requirements, parts = self._loss.requirements, {}
        if requirements.tail:
            parts["last stage"] = reader.tail.resident
        if requirements.head or reader.selection.by_head:
            parts["classifier"] = sum(p.numel() for p in reader.head.parameters())
        if not parts:
            return None
        model, total = reader.cache.identity["teacher"]["model"], sum(parts.values())
        each = " and ".join(f"its {name} ({count:,})" for name, count in parts.items())
        return f"{total:,} parameters of {model} are in memory, frozen: {each}"

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
        decoded = reader.decode(fields)
        return decoded if isinstance(decoded, Targets) or weights is None else average(decoded, weights)

    def of(batch: Batch) -> Any:
        own = one(batch.targets)
        if not batch.partner_targets or batch.lam is None:
            return own
        other = one(batch.partner_targets)
        if isinstance(own, Targets):
            return mix_targets(own, other, batch.lam, batch.labels)
        return tuple(mix_targets(a, b, batch.lam, batch.labels) for a, b in zip(own, other, strict=True))

    return of
