"""An open cache: its identity, its segments and which of their tasks are committed."""

from typing import Any

from kdpipe._util.fingerprint import canonical_json, differences, fingerprint, sha256
from kdpipe.cache.checked import (
    check_segment,
    parse_canaries,
    parse_root,
    read_part_record,
    read_segment,
    read_store_record,
    read_task,
)
from kdpipe.cache.layout import ROOT, STORE_RECORD, Segment, in_order, part_named, part_record
from kdpipe.cache.names import is_folder, shown
from kdpipe.cache.schema import wrong
from kdpipe.cache.store import Store
from kdpipe.errors import CacheError, CorruptionError, IdentityError
from kdpipe.shards.classes import require_same
from kdpipe.targets import Quality
from kdpipe.views import View, ViewsConfig
from kdpipe.views.policy import POLICY_VERSION

# Of an identity: left out where the names of classes are unknown.
CLASS_NAMES = "classes"


class Cache:
    """What a store holds, read once when opened; `refresh` reads it again.

    Attributes:
        store: where it is stored.
        record: of the store: format, and digests of the identity's and the canaries' files.
        identity: what it is a cache of; see `caching.identity`.
        identity_digest: of that; in every record, so that none counts for another cache.
        canaries: what stands in place of each canary's name, see `read_canaries`.
        segments: in the order of their numbers.
        commits: (segment name, shard name) -> record of the finished task; without those of another cache, or of
            another segment of this name, see `owns` and `Segment.owns`.
        parts: by name, the record of what is stored once beside the segments; see `cache.parts`.
        unrelated: paths of the records of tasks and parts that are of another cache or segment, and don't count.

    Raises:
        CacheError: no cache there, or one of another format.
        IdentityError: the store's or a segment's record is of another cache.
        CorruptionError: its records or metadata are not what was written, or not what kdpipe writes.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        if not store.exists(STORE_RECORD):
            raise CacheError("no cache here", where=store, do="Make one with kdpipe cache-teacher, or correct the path")
        self.record = read_store_record(store)
        files = check_files(store, self.record["files"])
        self.identity: dict[str, Any] = parse_root(files[ROOT], f"{store}/{ROOT}")
        self.identity_digest = fingerprint(self.identity)
        if not self.owns(self.record):
            raise self._of_another(STORE_RECORD, "Restore it from a copy, or cache again")
        self.canaries = parse_canaries(files, self.identity, store)
        self.segments: list[Segment] = []
        self.commits: dict[tuple[str, str], dict[str, Any]] = {}
        self.parts: dict[str, dict[str, Any]] = {}
        self.unrelated: list[str] = []
        self.refresh()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Identity of each shard, in the order of the arrays' shard axis."""
        return list(self.identity["shards"])

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes of its labels, if they are known."""
        names: list[str] | None = self.identity.get(CLASS_NAMES)
        return names

    @property
    def num_classes(self) -> int:
        """Classes of the teacher."""
        return int(self.identity["teacher"]["num_classes"])

    @property
    def views_config(self) -> ViewsConfig:
        """The policy of its views, as needed to render them again."""
        recorded = self.identity["views"]
        if recorded["version"] != POLICY_VERSION:
            raise IdentityError(
                "its views are of another policy version",
                where=self.store,
                found=recorded["version"],
                allowed=POLICY_VERSION,
                do="Use the release that cached it, or cache again",
            )
        return ViewsConfig.model_validate({name: recorded[name] for name in ViewsConfig.model_fields})

    @property
    def size(self) -> int:
        """Render size the teacher saw, pixels."""
        return int(self.identity["render_size"])

    def refresh(self) -> None:
        """Read segments and commits again, checking every record and the arrays' metadata."""
        names = self.store.files("commits")
        segments = []
        for name in names:
            if is_folder(name):  # a link, perhaps: its tasks would look undone
                raise wrong(f"{self.store}/{name}", "", "not a folder")
            if name.endswith("/segment.json"):
                segment, record = read_segment(self.store, name)
                if not self.owns(record):
                    raise self._of_another(name, f"Restore it from a copy; or delete commits/{segment.name}")
                check_segment(segment, check_files(self.store, record["files"]), self.identity, self.store)
                segments.append(segment)
        # Where there are no locks, two runs may have given one number to two.
        self.segments = sorted(segments, key=lambda s: (s.number, s.name))
        self._require_described(names)
        parts = {part: read_part_record(self.store, part) for name in names if (part := part_named(name))}
        self.parts = {part: record for part, record in parts.items() if self.owns(record)}
        self.unrelated = [part_record(part) for part in parts if part not in self.parts]
        present, self.commits = set(names), {}
        for segment in self.segments:
            for position, shard in enumerate(self.shards):
                if segment.commit(shard["name"]) in present:
                    record = read_task(self.store, segment, position, shard)
                    if self.owns(record) and segment.owns(record):
                        self.commits[segment.name, shard["name"]] = record
                    else:
                        self.unrelated.append(segment.commit(shard["name"]))

    def owns(self, record: dict[str, Any]) -> bool:
        """Whether a record is of a cache of this identity. Records without the digest are older than it is."""
        return bool(record.get("identity_digest", self.identity_digest) == self.identity_digest)

    def require_current(self) -> None:
        """Refuse to write where another cache has taken this one's place since it was opened.

        Raises:
            IdentityError: there is another one, or none.
        """
        there = self.store.exists(STORE_RECORD)
        if not there or read_store_record(self.store) != self.record:
            raise IdentityError(
                "another run has put its own cache in this one's place" if there else "the cache was deleted",
                where=f"{self.store}/{STORE_RECORD}",
                do="Nothing more was written; choose another --out, or repeat the command",
            )

    def _of_another(self, name: str, do: str) -> IdentityError:
        return IdentityError(
            "a record of another cache: its identity_digest differs", where=f"{self.store}/{name}", do=do
        )

    def _require_described(self, names: list[str]) -> None:
        """Records of finished tasks without their segment's: their arrays would look like leftovers, and be deleted."""
        described = {segment.name for segment in self.segments}
        for folder, tasks in tasks_by_segment(names).items():
            if not is_folder(f"commits/{folder}"):
                raise wrong(f"{self.store}/commits", "", f"no segment has the name {shown(folder)}")
            record = f"commits/{folder}/segment.json"
            # A segment that was added while the names were listed is no such case.
            if folder not in described and not self.store.exists(record):
                raise CorruptionError(
                    "a segment's record is missing",
                    where=f"{self.store}/{record}",
                    found=f"{len(tasks)} finished tasks that need it",
                    do=f"Restore it from a copy; or delete commits/{folder}, and cache-teacher does these tasks again",
                )

    def committed(self, segment: Segment) -> list[str]:
        """Names of the shards whose task of this segment is finished."""
        return [s["name"] for s in self.shards if (segment.name, s["name"]) in self.commits]

    def complete(self, segment: Segment, shards: list[str]) -> bool:
        """Whether the tasks of all these shards are finished."""
        return all((segment.name, name) in self.commits for name in shards)

    def views(self, complete_for: list[str] | None = None) -> list[View]:
        """Views committed for all of these shards (default: all of the cache), numbers first."""
        wanted = complete_for if complete_for is not None else [s["name"] for s in self.shards]
        found = {view for segment in self.segments if self.complete(segment, wanted) for view in segment.views}
        return in_order(found)

    def quality(self, segment: Segment) -> Quality:
        """Sum over the committed tasks of a segment."""
        total = Quality()
        for name in self.committed(segment):
            total.add(Quality(**self.commits[segment.name, name]["quality"]))
        return total

    def bytes(self, segment: Segment) -> int:
        """Stored bytes of the committed tasks of a segment."""
        records = (self.commits[segment.name, name] for name in self.committed(segment))
        return sum(file["bytes"] for record in records for file in record["files"].values())

    def root_digest(self) -> str:
        """One digest over identity, all commits and parts: equal for caches with equal content."""
        commits = {f"{name}/{shard}": record_digest(record) for (name, shard), record in self.commits.items()}
        parts = {"parts": {name: record_digest(record) for name, record in self.parts.items()}} if self.parts else {}
        return fingerprint({"identity": self.identity, "commits": commits, **parts})


def record_digest(record: dict[str, Any]) -> str:
    """Of a record's content but for the identity's digest, which older releases didn't write."""
    return fingerprint({name: value for name, value in record.items() if name != "identity_digest"})


def tasks_by_segment(names: list[str]) -> dict[str, list[str]]:
    """Of the names of files below commits/, the records of tasks, by the folder of their segment."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.removeprefix("commits/").partition("/")
        if file.endswith(".json") and file != "segment.json":
            found.setdefault(folder, []).append(name)
    return found


def check_files(store: Store, files: dict[str, str]) -> dict[str, bytes]:
    """The bytes of each named file; raises CorruptionError unless it has its recorded sha256."""
    found = {}
    for name, digest in files.items():
        found[name] = store.read(name)
        if sha256(found[name]) != digest:
            raise CorruptionError(
                "a file of the cache is damaged",
                where=f"{store}/{name}",
                do="Restore it from a copy, or cache again",
            )
    return found


def require_identity(where: object, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise IdentityError naming the fields in which a cache (`theirs`) differs from what is used now (`ours`).

    Names of classes are compared where both are known.
    """
    ours, theirs = dict(ours), dict(theirs)
    require_same(ours.pop(CLASS_NAMES, None), theirs.pop(CLASS_NAMES, None), where, "the cache")
    found = differences(_named(ours), _named(theirs))
    if not found:
        return
    field, now, then = found[0]
    others = [f for f, _, _ in found[1:]]
    more = f" (and {', '.join(others[:5])}{' ...' if len(others) > 5 else ''})" if others else ""
    raise IdentityError(
        f"the cache was made with another {field}{more}",
        where=where,
        found=f"{_short(now)} now",
        allowed=f"{_short(then)} as cached",
        do="Use what the cache was made with, or make another cache",
    )


def _named(identity: dict[str, Any]) -> dict[str, Any]:
    """Shards by name instead of position, so that a difference is called by the shard's name."""
    shards = {s["name"]: {k: v for k, v in s.items() if k != "name"} for s in identity.get("shards", [])}
    return {**identity, "shards": shards} if "shards" in identity else identity


def _short(value: Any) -> str:
    text = "absent" if value is None else value if isinstance(value, str) else canonical_json(value).decode()
    return text if len(text) <= 24 else f"{text[:20]}..."
