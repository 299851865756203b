"""A small cache in memory, one of whose files is another, and everything that reads it."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kdpipe._util.fingerprint import sha256
from kdpipe.cache import CacheReader, CacheRequest, Store, read_canaries
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.manifest import CacheRecord
from kdpipe.cache.sealed import seal
from kdpipe.cache.tools.ls import summarise
from kdpipe.cache.tools.transfer import transfer
from kdpipe.errors import CacheError
from kdpipe.shards import Index
from kdpipe.verification import check_integrity
from tests.fuzz.files import join, replaced
from tests.fuzz.small import make_world
from tests.fuzz.target import Changed


class SmallCache:
    """The cache; `folder` is inside of folders that nothing may write to."""

    def __init__(self, folder: Path) -> None:
        self.outside = folder / "outside"
        world, self.teacher = make_world(self.outside / "inside")
        self.index: Index = world.index
        self.path = world.folder / "cache"
        self.files = sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
        self.sound = self.read()
        self._there = self._listed()

    def seeds(self, *, records: bool) -> list[bytes]:
        """Each file as an input; JSON documents alone with `records`, else all others too."""
        named = [name for name in self.files if not records or name.endswith(".json")]
        return [join(name, (self.path / name).read_bytes()) for name in named]

    @contextmanager
    def holding(self, name: str, content: bytes, *, resealed: bool = False) -> Iterator[None]:
        """The cache with another file; `resealed`: with every digest that it needs to be taken."""
        with ExitStack() as stack:
            if not resealed:
                stack.enter_context(replaced(self.path / name, content))
                yield
                return
            for changed, data in self._resealed(name, content).items():
                stack.enter_context(replaced(self.path / changed, data))
            yield

    def _resealed(self, name: str, content: bytes) -> dict[str, bytes]:
        """The files that differ in the cache where `name` has this content, by name."""
        changed = {name: content}
        if name.startswith("commits/") or name == "provenance.json":
            tree = json.loads(content)
            if not isinstance(tree, dict):
                raise CacheError("a record that is no object can't be sealed")
            tree.pop("digest", None)
            return {name: seal(tree)}
        for record in (n for n in self.files if n.startswith("commits/")):
            tree = json.loads((self.path / record).read_bytes())
            entry = tree.get("files", {}).get(name)
            if entry is not None:
                digest = sha256(content)
                tree["files"][name] = digest if isinstance(entry, str) else {"bytes": len(content), "sha256": digest}
                tree.pop("digest")
                changed[record] = seal(tree)
        return changed

    def read(self) -> dict[str, Any]:
        """What training, inspect and verify read of it."""
        want = CacheRequest(pooled=True, map=True, head=True, tail=True)
        reader = CacheReader(str(self.path), self.index, request=want)
        cache = reader.cache
        rows = {}
        for shard in self.index.shards:
            for view in reader.views:
                for start in range(0, shard.samples, self.index.block_size):
                    found = reader.read(shard.name, view, start, min(start + self.index.block_size, shard.samples))
                    rows[shard.name, view, start] = {name: part.tobytes() for name, part in found.items()}
        reader.calibration()
        return {
            "rows": rows,
            "identity": cache.identity,
            "policy": cache.views_config,
            "canaries": [{**vars(one), "pixels": one.pixels.tobytes()} for one in read_canaries(cache)],
            "head": reader.head.weight.tolist(),
            "tail": [t.tolist() for part in reader.tail._parts for t in part.state_dict().values()],
            "root": cache.root_digest(),
            "record": CacheRecord.of(cache, reader.encoding, reader.views),
            "runs": read_provenance(cache.store),
            "summary": summarise(str(self.path)),
        }

    def problems(self) -> list[dict[str, str]]:
        """What verify lists."""
        return check_integrity(Store(self.path))[0]

    def pull(self, number: int) -> None:
        """Copy it, and see that nothing is written but the copy."""
        out = self.outside / "inside" / "pulled" / str(number)
        try:
            transfer(str(self.path), str(out))
        finally:
            written = [p for p in self._listed() if p not in self._there]
            wrong = [p for p in written if not p.startswith(str(out.parent))]
            for path in written:
                Path(path).unlink()
            if wrong:
                raise Changed(f"written outside of the copy: {wrong[0]}")

    def _listed(self) -> set[str]:
        return {f"{where}/{name}" for where, _, names in os.walk(self.outside.parent) for name in names}
