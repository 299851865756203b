"""Hostile caches and indexes: sound ones with other content, whose digests fit."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe._util.fingerprint import canonical_json, fingerprint, sha256
from kdpipe.cache.sealed import seal
from tests.fuzz.mutate import CODE, ESCAPED
from tests.hostile.kinds import CONTROL, DEEP, Kind, code, nobody, only
from tests.hostile.world import SECRET, World

Change = Callable[[Any, Path], None]
_STORE, _RECORDS = "commits/store.json", "commits"


def reseal(cache: Path, name: str, content: bytes) -> None:
    """Write a file of a cache, and every digest of it that the cache's records hold."""
    if name.startswith(_RECORDS) or name == "provenance.json":
        tree = json.loads(content)
        tree.pop("digest", None)
        (cache / name).write_bytes(seal(tree))
        return
    (cache / name).write_bytes(content)
    for path in (cache / _RECORDS).rglob("*.json"):
        tree = json.loads(path.read_bytes())
        entry = tree.get("files", {}).get(name)
        if entry is not None:
            digest = sha256(content)
            tree["files"][name] = digest if isinstance(entry, str) else {"bytes": len(content), "sha256": digest}
            tree.pop("digest")
            path.write_bytes(seal(tree))


def cache(name: str, pattern: str, change: Change, refused_by: frozenset[str] | None = None) -> Kind:
    """A cache whose JSON document that matches is another."""

    def make(world: World, folder: Path) -> Path:
        out = folder / "cache"
        shutil.copytree(world.cache, out)
        path = sorted(out.glob(pattern))[0]
        tree = json.loads(path.read_bytes())
        change(tree, out)
        reseal(out, str(path.relative_to(out)), canonical_json(tree))
        return out

    return Kind(name, make, refused_by)


def _beside(cache: Path, name: str) -> str:
    """A digest of a file which lies outside of the cache, where a record says."""
    (cache / name).write_bytes(SECRET)
    return sha256(SECRET)


def _task(name: str) -> Change:
    def change(tree: Any, out: Path) -> None:
        files = tree["files"]
        first = sorted(files)[0]
        entry = files.pop(first)
        if name.startswith("/"):
            files[name] = {"bytes": len(SECRET), "sha256": sha256(SECRET)}
        else:
            data = (out / first).read_bytes()
            (out / name).write_bytes(data)
            files[name] = entry

    return change


def _part(name: str) -> Change:
    def change(tree: Any, out: Path) -> None:
        [digest] = tree["files"].values()
        (out / name).write_bytes((out / "parts" / "head.safetensors").read_bytes())
        tree["files"] = {name: digest}

    return change


def _teacher(number: int) -> Change:
    def change(tree: Any, out: Path) -> None:
        tree["runs"][-1]["teacher"].update(code(out.parent)[number], weights=None)

    return change


def _tail(number: int) -> Change:
    return lambda tree, out: tree["about"].update(code(out.parent)[number])


def _identity(key: str, value: Any) -> Change:
    def change(tree: Any, out: Path) -> None:
        inside = tree["attributes"]["kdpipe"]["identity"]
        *above, last = key.split(".")
        for part in above:
            inside = inside[int(part) if part.isdigit() else part]
        inside[last] = value

    return change


def _put(key: str, value: Any) -> Change:
    def change(tree: Any, out: Path) -> None:
        *above, last = key.split(".")
        for part in above:
            tree = tree[int(part) if part.isdigit() else part]
        tree[last] = value

    return change


def _text(name: str, content: bytes) -> Kind:
    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.cache, folder / "cache")
        (folder / "cache" / name).write_bytes(content)
        return folder / "cache"

    return Kind(f"deep-{Path(name).stem}", make)


_ROOT, _SEGMENT, _TASK = "zarr.json", "commits/000-*/segment.json", "commits/000-*/shard-0000.tar.json"
_CANARIES = "canaries/pixels/zarr.json"
# Who looks at canaries; who runs the teacher again; who builds a tail.
_RENDERS = only("verify", "train-student", "evaluate")
CACHES = [
    cache("store-path-up", _STORE, lambda t, out: t["files"].update({"../stolen": _beside(out, "../stolen")})),
    cache("store-path-absolute", _STORE, lambda t, out: t["files"].update({ESCAPED: sha256(SECRET)})),
    cache("task-path-up", _TASK, _task("../stolen")),
    cache("task-path-absolute", _TASK, _task(ESCAPED)),
    cache("part-path-up", "commits/head.json", _part("../stolen")),
    cache("provenance-shell", "provenance.json", _teacher(0), only("verify")),
    cache("provenance-code", "provenance.json", _teacher(1), only("verify")),
    cache("provenance-types", "provenance.json", _put("runs", [3]), only("verify", "cache ls")),
    cache("tail-shell", "commits/tail.json", _tail(0), only("verify")),
    cache("tail-code", "commits/tail.json", _tail(1), only("verify")),
    cache("segment-views", _SEGMENT, _put("segment.views", ["x", {}])),
    cache("segment-k", _SEGMENT, _put("segment.encoding.k", 2**40)),
    cache("segment-encoding", _SEGMENT, _put("segment.encoding", 3)),
    cache("task-quality", _TASK, _put("quality", {"os": "system"})),
    cache("task-files", _TASK, _put("files", 3)),
    cache("identity-shards", _ROOT, _identity("shards", 3)),
    cache("identity-shard-path", _ROOT, _identity("shards.0.name", "../../../stolen.tar")),
    cache("identity-shard-control", _ROOT, _identity("shards.0.name", CONTROL)),
    cache("identity-samples", _ROOT, _identity("shards.0.samples", 2**40)),
    cache("identity-classes", _ROOT, _identity("teacher.num_classes", 2**31)),
    cache("identity-model", _ROOT, _identity("teacher.model", CODE), nobody()),
    cache("identity-views", _ROOT, _identity("views", [1])),
    cache("identity-size", _ROOT, _identity("render_size", 2**31), only("verify")),
    cache("canaries-codec", _CANARIES, _put("codecs", [{"name": "pickle", "configuration": {}}]), _RENDERS),
    cache("canaries-shape", _CANARIES, _put("shape", [2**40, 64, 64, 3]), _RENDERS),
    _text(_STORE, DEEP.encode()),
]


def _index(
    name: str, change: Callable[[Any, dict[str, Any], World], None], refused_by: frozenset[str] | None = None
) -> Kind:
    """An index whose document, or arrays, are others."""

    def make(world: World, folder: Path) -> Path:
        out = folder / "index"
        shutil.copytree(world.index, out)
        arrays = {path.stem: np.load(path) for path in out.glob("*.npy")}
        tree = json.loads((out / "index.json").read_bytes())
        before = {name: array.tobytes() for name, array in arrays.items()}
        change(tree, arrays, world)
        for array_name, array in arrays.items():
            if array.tobytes() != before[array_name] or array.dtype == object:
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=True)
                (out / f"{array_name}.npy").write_bytes(buffer.getvalue())
                tree["arrays"][array_name]["sha256"] = sha256(buffer.getvalue())
                tree["arrays"][array_name]["shape"] = list(array.shape)
        tree.pop("digest")
        (out / "index.json").write_bytes(canonical_json(tree | {"digest": fingerprint(tree)}))
        return out

    return Kind(name, make, refused_by)


def _of_array(name: str, at: int, value: int) -> Callable[[Any, dict[str, Any], World], None]:
    def change(tree: Any, arrays: dict[str, Any], world: World) -> None:
        arrays[name].reshape(-1)[at] = value

    return change


def _secret(tree: Any, arrays: dict[str, Any], world: World) -> None:
    tree["shards"][0] |= {"url": str(world.folder / "secret.txt"), "size": len(SECRET)}


def _pickled(tree: Any, arrays: dict[str, Any], world: World) -> None:
    arrays["labels"] = np.array([{"a": 1}] * 9, object)


def _document(name: str, content: bytes) -> Kind:
    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.index, folder / "index")
        (folder / "index" / "index.json").write_bytes(content)
        return folder / "index"

    return Kind(name, make)


# What reads images; the others may take what only misplaces them.
_READERS = only("view", "cache-teacher", "verify", "train-student", "evaluate", "erf", "plan")
INDEXES = [
    _index("shard-outside", _secret, _READERS),
    _index("shard-name-path", lambda t, a, w: t["shards"][0].update(name="../../../stolen.tar")),
    _index("shard-name-control", lambda t, a, w: t["shards"][0].update(name=CONTROL)),
    _index("shards-types", lambda t, a, w: t.update(shards=[3])),
    _index("shard-url-type", lambda t, a, w: t["shards"][0].update(url=["x"])),
    _index("block-size", lambda t, a, w: t.update(block_size=2**62)),
    _index("classes", lambda t, a, w: t.update(num_classes=2**31)),
    _index("image-before-the-file", _of_array("image_start", 0, -(2**40)), _READERS),
    _index("image-huge", _of_array("image_size", 0, 2**50), _READERS),
    _index("block-before-the-file", _of_array("block_start", 0, -5), _READERS),
    _index("block-of-no-shard", _of_array("block_shard", 0, 77)),
    _index("rows-backwards", _of_array("block_first", 1, 2**50)),
    _index("label-huge", _of_array("labels", 0, 2**31 - 1), only("cache-teacher", "train-student", "evaluate")),
    _index("keys-cut", _of_array("key_stop", 3, 2**50), _READERS - {"erf"}),
    _index("array-pickle", _pickled),
    _document("deep", DEEP.encode()),
    _document("nan", b'{"format": NaN}'),
    _document("array", b"[]"),
]
