"""An open cache: its identity, its segments and which of their tasks are committed."""

from typing import Any

from pipeline.cache.checked import (
    check_segment,
    parse_canaries,
    parse_root,
    read_part_record,
    read_segment,
    read_store_record,
    read_task,
)
from pipeline.cache.layout import ROOT, STORE_RECORD, Segment, in_order, part_named
from pipeline.cache.names import is_folder, shown
from pipeline.cache.schema import wrong
from pipeline.cache.store import Store
from pipeline.errors import CacheError, CorruptionError, IdentityError
from pipeline.fingerprint import canonical_json, differences, fingerprint, sha256
from pipeline.targets import Quality
from pipeline.views import View, ViewsConfig
from pipeline.views.policy import POLICY_VERSION


class Cache:
    """What a store holds, read once when opened; `refresh` reads it again.

    Attributes:
        store: where it lives.
        record: of the store: format, and digests of the identity's and the canaries' files.
        identity: what it is a cache of; see `caching.identity`.
        canaries: what stands in place of each canary's name, see `read_canaries`.
        segments: in the order of their numbers.
        commits: (segment name, shard name) -> record of the finished task; without those of another segment of this
            name, see `Segment.owns`.
        parts: by name, the record of what is stored once beside the segments; see `cache.parts`.

    Raises:
        CacheError: no cache there, or one of another format.
        CorruptionError: its records or metadata are not what was written, or not what kdpipe writes.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        if not store.exists(STORE_RECORD):
            raise CacheError("no cache here", where=store, do="Make one with kdpipe cache-teacher, or mend the path")
        self.record = read_store_record(store)
        files = check_files(store, self.record["files"])
        self.identity: dict[str, Any] = parse_root(files[ROOT], f"{store}/{ROOT}")
        self.canaries = parse_canaries(files, self.identity, store)
        self.segments: list[Segment] = []
        self.commits: dict[tuple[str, str], dict[str, Any]] = {}
        self.parts: dict[str, dict[str, Any]] = {}
        self.refresh()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Identity of each shard, in the order of the arrays' shard axis."""
        return list(self.identity["shards"])

    @property
    def num_classes(self) -> int:
        """Classes of the teacher."""
        return int(self.identity["teacher"]["num_classes"])

    @property
    def views_config(self) -> ViewsConfig:
        """The policy of its views, as needed to render them again."""
        said = self.identity["views"]
        if said["version"] != POLICY_VERSION:
            raise IdentityError(
                "its views are of another policy version",
                where=self.store,
                found=said["version"],
                allowed=POLICY_VERSION,
                do="Use the release that cached it, or cache anew",
            )
        return ViewsConfig.model_validate({name: said[name] for name in ViewsConfig.model_fields})

    @property
    def size(self) -> int:
        """Render size the teacher saw, pixels."""
        return int(self.identity["render_size"])

    def refresh(self) -> None:
        """Read segments and commits anew, checking every record and the arrays' metadata."""
        names = self.store.files("commits")
        segments = []
        for name in names:
            if is_folder(name):  # a link, perhaps: its tasks would look undone
                raise wrong(f"{self.store}/{name}", "", "not a folder")
            if name.endswith("/segment.json"):
                segment, files = read_segment(self.store, name)
                check_segment(segment, check_files(self.store, files), self.identity, self.store)
                segments.append(segment)
        # Where there are no locks, two runs may have given one number to two.
        self.segments = sorted(segments, key=lambda s: (s.number, s.name))
        self._require_described(names)
        parts = [part for name in names if (part := part_named(name))]
        self.parts = {part: read_part_record(self.store, part) for part in parts}
        present, self.commits = set(names), {}
        for segment in self.segments:
            for position, shard in enumerate(self.shards):
                if segment.commit(shard["name"]) in present:
                    record = read_task(self.store, segment, position, shard)
                    if segment.owns(record):
                        self.commits[segment.name, shard["name"]] = record

    def _require_described(self, names: list[str]) -> None:
        """Records of finished tasks without their segment's: their arrays would look like leftovers, and be swept."""
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
        commits = {f"{name}/{shard}": fingerprint(record) for (name, shard), record in self.commits.items()}
        parts = {"parts": {name: fingerprint(record) for name, record in self.parts.items()}} if self.parts else {}
        return fingerprint({"identity": self.identity, "commits": commits, **parts})


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
                do="Restore it from a copy, or cache anew",
            )
    return found


def require_identity(where: object, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise IdentityError naming the fields in which a cache (`theirs`) differs from what is used now (`ours`)."""
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
