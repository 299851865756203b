"""The whole check of a cache: its files, its canaries, what it keeps of the teacher, and a sample of its views."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdpipe._util.fingerprint import fingerprint
from kdpipe.cache import Cache, Segment, Store, require_identity
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.layout import PROVENANCE
from kdpipe.caching import check_canaries, make_identity
from kdpipe.caching.identity import is_nondeterministic
from kdpipe.errors import CacheError, IdentityError, KdpipeError, TeacherError
from kdpipe.shards import Index
from kdpipe.teacher import Teacher, TeacherConfig
from kdpipe.verification.integrity import Problem, check_integrity
from kdpipe.verification.modules import check_parts
from kdpipe.verification.replay import check_truth, join
from kdpipe.views.canaries import CanaryTolerance

# Of a segment's numerics, the settings of a teacher.
_SETTINGS = ("form", "layers", "batch_size", "amp_dtype", "channels_last", "threads")


@dataclass(frozen=True)
class Integrity:
    """Numbers of files, bytes and commits that were checked, and what is wrong with them."""

    files: int
    bytes: int
    commits: int
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def json(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "ok": self.ok}


@dataclass(frozen=True)
class Verification:
    """What a check of a cache found; all but the first two is None if the teacher was not run.

    Attributes:
        cache: its folder or URL.
        integrity: of its files.
        canaries: see `check_canaries`; `what` is the error where they differ too much.
        modules: of each module of the teacher that is kept, `ok` and `what` is wrong.
        truth: see `check_truth`.
    """

    cache: str
    integrity: Integrity
    canaries: dict[str, Any] | None = None
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    truth: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with what was checked."""
        checks = [*self.modules.values(), *(part for part in (self.canaries, self.truth) if part is not None)]
        return self.integrity.ok and all(part["ok"] for part in checks)

    def json(self) -> dict[str, Any]:
        """JSON-able."""
        found: dict[str, Any] = {"cache": self.cache, "integrity": self.integrity.json()}
        if self.truth is not None:
            found["canaries"] = self.canaries
            if self.modules:
                found["parts"] = {**self.modules, "ok": all(part["ok"] for part in self.modules.values())}
            found["truth"] = self.truth
        return {**found, "ok": self.ok}


def verify_cache(
    url: str,
    *,
    index_path: str | None = None,
    weights: str | None = None,
    teachers: tuple[str, ...] = (),
    trust: tuple[str, ...] = (),
    integrity_only: bool = False,
    samples: int = 512,
    seed: int = 0,
    canary_tolerance: CanaryTolerance = 0,
    device: str | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Verification:
    """Check the files of a cache and, unless something is wrong with them, its outputs against the live teacher.

    Args:
        url: the cache.
        index_path: of its samples; by default the index with which it was made.
        weights: of the teacher; by default those with which it was made.
        teachers: names that its models must have, which are then trusted.
        trust: names of code that the cache may give, see `require_trusted`.
        integrity_only: leave out all that needs the teacher.
        samples: views to compare with the live teacher, see `check_truth`.
        seed: of their choice.
        canary_tolerance: levels of 255 by which canaries may differ when rendered again.
        device: of the teacher; by default the kind on which the cache was made.
        log: gets remarks, one line each.

    Raises:
        CacheError: there is no cache, no record of how it was made, or nothing in it.
        IdentityError: index or teacher are not those of the cache.
        TeacherError: the teacher can't be built, or isn't trusted.
    """
    store = Store(url)
    problems, counts = check_integrity(store)
    integrity = Integrity(counts["files"], counts["bytes"], counts["commits"], problems)
    if integrity_only or problems:
        return Verification(url, integrity)
    cache = Cache(store)
    _require_teachers(cache, teachers)
    runs = read_provenance(store)
    if not runs:
        raise CacheError("provenance is missing", where=store, do="Pass --integrity-only")
    where, last = f"{store}/{PROVENANCE}", runs[-1]
    if index_path is None and "merged" in last:
        raise CacheError("merged from several caches: no index is known", where=store, do="Pass --index")
    index = Index.open(index_path or last["shards"]).limit(last["samples"])
    index.verify()
    config = cache.views_config
    truths: list[dict[str, Any]] = []
    modules: dict[str, dict[str, Any]] | None = None
    for segments in _groups([s for s in cache.segments if cache.committed(s)], lambda s: s.numerics):
        settings = {
            **last["teacher"],
            "weights": weights or last["teacher"].get("weights"),
            **{k: segments[0].numerics.get(k) for k in _SETTINGS},
            "device": device or segments[0].numerics.get("device"),
        }
        described = TeacherConfig.from_file(settings, where, (*teachers, *trust))
        teacher = _built(described, cache.num_classes, log)
        declared = is_nondeterministic(cache)
        identity = make_identity(index, config, teacher.identity(), cache.size, nondeterministic=declared)
        require_identity(store, identity, cache.identity)
        if modules is None:
            modules = check_parts(cache, teacher)
        for alike in _groups(segments, lambda s: [f.name for f in s.encoding.features]):
            truths.append(check_truth(cache, index, config, teacher, alike, samples=samples, seed=seed))
    if not truths:
        raise CacheError(
            "nothing is cached yet", where=store, do="Repeat kdpipe cache-teacher, or pass --integrity-only"
        )
    try:
        canaries = {**check_canaries(cache, index, config, canary_tolerance), "ok": True}
    except KdpipeError as e:
        canaries = {"ok": False, "what": str(e)}
    truth = join(truths)
    # Also those without a finished task, which were not among the checked ones.
    truth["segments"]["present"] = [segment.name for segment in cache.segments]
    return Verification(url, integrity, canaries, modules or {}, truth)


def _require_teachers(cache: Cache, names: tuple[str, ...]) -> None:
    """Refuse a name that is not of the cache's teacher."""
    teacher = cache.identity["teacher"]
    own = [one["model"] for one in teacher.get("members", [teacher])]
    for name in names:
        if name not in own:
            what = "the cache was made with another teacher"
            raise IdentityError(what, where="--teacher", found=name, allowed=", ".join(own))


def _built(config: TeacherConfig, num_classes: int, log: Callable[[str], None]) -> Teacher:
    """The teacher as it was run; with plain layers where this machine can't compute them as they were."""
    try:
        return Teacher(config, num_classes)
    except TeacherError as e:
        if not config.layers:
            raise
        teacher = Teacher(config.model_copy(update={"layers": {}}), num_classes)
        log(f"verify: run with plain layers here, so rounding may differ: {e}")
        return teacher


def _groups(segments: list[Segment], key: Callable[[Segment], Any]) -> list[list[Segment]]:
    """Segments together that have the same key, which is JSON-able."""
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(fingerprint(key(segment)), []).append(segment)
    return list(found.values())
