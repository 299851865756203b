"""Hostile files of other kinds: weights, checkpoints, params, shards, manifests, class maps, records, images."""

import json
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from kdpipe.models.weights import METADATA_KEY
from kdpipe.trainer.files import CHECKPOINT
from tests.fuzz.mutate import CODE, ESCAPED
from tests.fuzz.tensors import write_headed
from tests.hostile.kinds import BOMB, CONTROL, DEEP, DIGITS, MARKER, Kind, code, nobody, only, put, text, trees
from tests.hostile.world import World
from tests.shards.making import encode, photo, write_tar

_BUILDS = only("plan", "cache-teacher", "train-student", "evaluate", "erf", "verify")


def _headed(path: Path, out: Path, key: str, change: Callable[[Any, Path], Any]) -> Path:
    """A safetensors file with another description of ours in its header."""
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()[key])
    said = {name: value for name, value in said.items() if not name.endswith("_sha256")}
    write_headed(out, load_file(path), key, change(said, out.parent))
    return out


def _weights(name: str, change: Callable[[Any, Path], Any], refused_by: frozenset[str] | None = None) -> Kind:
    def make(world: World, folder: Path) -> Path:
        return _headed(world.weights, folder / "weights.safetensors", METADATA_KEY, change)

    return Kind(name, make, refused_by)


class _Shell:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


def _pickle(zipped: bool) -> Kind:
    def make(world: World, folder: Path) -> Path:
        data = pickle.dumps({"model": _Shell(folder / MARKER)}, 2)
        out = folder / "weights.pth"
        if not zipped:
            out.write_bytes(data)
            return out
        with zipfile.ZipFile(out, "w") as made:
            made.writestr("archive/data.pkl", data)
            made.writestr("archive/version", "3\n")
        return out

    return Kind(f"pickle-shell-{'zip' if zipped else 'plain'}", make)


_ARRAY = struct.pack("<Q", 2) + b"[]"
_CLAIM = struct.pack("<Q", 2**60) + b"{}"
WEIGHTS = [
    _weights("shell", lambda said, folder: said | code(folder)[0]),
    _weights("code", lambda said, folder: said | code(folder)[1]),
    _weights("hub", put("model", value="hf-hub:nobody/nothing")),
    _weights("local-folder", put("model", value="local-dir:/")),
    _weights("model-type", put("model", value=["resnet10t"])),
    _weights("array", lambda said, folder: []),
    _weights("deep", lambda said, folder: DEEP),
    _weights("no-model", lambda said, folder: {"x": 1}, only("erf")),
    _weights("classes-huge", put("num_classes", value=2**31)),
    _weights("size-huge", put("input_size", value=2**31), only("plan", "cache-teacher", "train-student", "evaluate")),
    _weights("kwargs-type", put("model_kwargs", value=[3])),
    # The others' command lines have arguments of their own.
    _weights("kwargs-huge", put("model_kwargs", "channels", value=[2**31] * 4), only("plan", "cache-teacher", "erf")),
    _weights("mean-type", put("mean", value=["x", {}, None])),
    _weights("scale-type", put("logit_scale", value="x")),
    _pickle(True),
    _pickle(False),
    text("header-array", _ARRAY, "weights.safetensors"),
    text("header-claim", _CLAIM, "weights.safetensors"),
    text("nothing", b"", "weights.safetensors"),
]


def _run(name: str, change: Callable[[Any, Path], Any], refused_by: frozenset[str] | None = None) -> Kind:
    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.run, folder / "run")
        state = "kdpipe-checkpoint"
        made = _headed(world.run / CHECKPOINT, folder / "made", state, lambda said, _: change(said, folder))
        made.replace(folder / "run" / CHECKPOINT)
        return folder / "run"

    return Kind(name, make, refused_by)


def _raw(name: str, data: bytes) -> Kind:
    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.run, folder / "run")
        (folder / "run" / CHECKPOINT).write_bytes(data)
        return folder / "run"

    return Kind(name, make)


RUNS = [
    _run("shell", lambda said, folder: _everywhere(said, code(folder)[0])),
    _run("code", lambda said, folder: _everywhere(said, code(folder)[1])),
    _run("array", lambda said, folder: []),
    _run("deep", lambda said, folder: DEEP),
    _run("empty", lambda said, folder: {"format": said["format"]}),
    _run("number-type", put("number", value="x")),
    _run("number-huge", put("number", value=2**62)),
    _raw("header-array", _ARRAY),
    _raw("header-claim", _CLAIM),
]


def _everywhere(tree: Any, model: dict[str, Any]) -> Any:
    """Every description of a model in a tree is another."""
    if isinstance(tree, dict):
        changed = {key: _everywhere(value, model) for key, value in tree.items()}
        return changed | model if "model_kwargs" in tree else changed
    return [_everywhere(value, model) for value in tree] if isinstance(tree, list) else tree


_PYTHON = "!!python/object/apply:os.system ['touch {marker}']"


def _tagged(world: World, folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text("views: " + _PYTHON.format(marker=folder / MARKER))
    return path


PARAMS = [
    text("aliases", BOMB, "params.yaml"),
    text("deep", DEEP, "params.yaml"),
    text("deep-blocks", "".join(" " * i + "a:\n" for i in range(3000)), "params.yaml"),
    Kind("python", _tagged),
    text("python-name", f"views: !!python/name:{CODE.replace(':', '.')} ''", "params.yaml"),
    text("digits", f"views: {{seed: {DIGITS}}}", "params.yaml"),
    text("zero", b"views: {seed: 1}\x00", "params.yaml"),
    text("no-utf8", b"views: {seed: \xff}", "params.yaml"),
    text("itself", "views: &a [*a]", "params.yaml"),
    text("long", "a: " + "x" * 30_000_000, "params.yaml"),
    text("array", "[1, 2]", "params.yaml"),
    # A model that the others don't build.
    text("surrogate", 'teacher: {model: "\\uD800"}', "params.yaml", refused_by=only("plan", "cache-teacher")),
]


def _png(height: int, width: int) -> bytes:
    """The claim of a size, and nothing of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _jpeg(height: int, width: int) -> bytes:
    """A small JPEG that claims to be large."""
    data = bytearray(_picture())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _picture() -> bytes:
    import numpy as np

    return encode(photo(np.random.default_rng(0), 8, 8))


def _shards(name: str, *members: tuple[str, bytes], refused_by: frozenset[str] | None = None) -> Kind:
    def make(world: World, folder: Path) -> Path:
        (folder / "shards").mkdir()
        write_tar(folder / "shards" / "a.tar", [(n, _picture() if d == b"picture" else d) for n, d in members])
        return folder / "shards"

    return Kind(name, make, refused_by)


SHARDS = [
    _shards("label-digits", ("a.jpg", b"picture"), ("a.cls", DIGITS.encode())),
    _shards("label-deep", ("a.jpg", b"picture"), ("a.json", DEEP.encode())),
    _shards("label-json-digits", ("a.jpg", b"picture"), ("a.json", f'{{"label": {DIGITS}}}'.encode())),
    _shards("label-huge", ("a.jpg", b"picture"), ("a.cls", b"99999999999")),
    _shards("image-claim-png", ("a.png", _png(60_000, 60_000)), ("a.cls", b"1")),
    _shards("image-claim-jpeg", ("a.jpg", _jpeg(13_300, 13_300)), ("a.cls", b"1")),
    _shards("image-claim-most", ("a.jpg", _jpeg(65_500, 65_500)), ("a.cls", b"1")),
    _shards("key-path", ("../../../stolen.jpg", b"picture"), ("../../../stolen.cls", b"1"), refused_by=nobody()),
    _shards("key-control", (f"{CONTROL}.jpg", b"picture"), (f"{CONTROL}.cls", b"1"), refused_by=nobody()),
    text("nothing", b"", "a.tar"),
    text("no-tar", b"\xff" * 4096, "a.tar"),
]

_SPLIT = ("splits", "train")


def _listed(kind: Kind) -> Kind:
    """A manifest with its shards beside it, so that they are not what is missing."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.manifest.parent, folder, dirs_exist_ok=True)
        return kind.make(world, folder)

    return Kind(kind.name, make, kind.refused_by)


MANIFESTS = [
    _listed(kind)
    for kind in trees(
        "_info.json",
        lambda world: json.loads(world.manifest.read_text()),
        [
            ("file-outside", put(*_SPLIT, "filenames", value=["../../../secret.txt", ESCAPED])),
            ("files-type", put(*_SPLIT, "filenames", value=3)),
            ("file-type", put(*_SPLIT, "filenames", value=[{"a": 1}, None])),
            ("file-long", put(*_SPLIT, "filenames", value=["x" * 5000, "y"])),
            ("file-zero", put(*_SPLIT, "filenames", value=["a\0b.tar", "y"])),
            ("lengths-type", put(*_SPLIT, "shard_lengths", value="xy")),
            ("lengths-huge", put(*_SPLIT, "shard_lengths", value=[2**70, -1])),
            ("split-type", put("splits", value=[1])),
            ("files-unknown-protocol", put(*_SPLIT, "filenames", value=["nosuch://a/b.tar", "c.tar"])),
        ],
    )
]
CLASS_MAPS = [
    text("deep", DEEP, "map.json"),
    text("digits", DIGITS, "map.txt"),
    text("digits-json", f"[{DIGITS}]", "map.json"),
    text("row-huge", f"[0, 1, {2**62}]", "map.json"),
    text("row-types", '[0, {"a": 1}, null]', "map.json"),
    text("row-negative", "[-1, 0, 1]", "map.json"),
    text("no-utf8", b"[0, \xff]", "map.json"),
    text("zero", b"0\n1\n\x00\n", "map.txt"),
]
CLASS_NAMES = [
    text("deep", DEEP, "names.json"),
    text("digits", f'{{"a": {DIGITS}}}', "names.json"),
    text("no-utf8", b"\xff,0\n", "names.csv"),
    text("two-numbers", "a,0\na,1\n", "names.csv"),
    text("one-column", "a,0\nb\n", "names.csv"),
]
# A report opens no cache.
_OPENS = only("train-student", "evaluate", "cache gc")
RECORDS = trees(
    "record.json",
    lambda world: json.loads(world.record.read_text()),
    [
        ("teacher-control", put("teacher", value=CONTROL), nobody()),
        ("cache-elsewhere", put("cache", value=lambda folder: str(folder / "nowhere")), _OPENS),
        ("cache-type", put("cache", value=["x"]), _OPENS),
        ("encoding-type", put("encoding", value=3), _OPENS),
        ("encoding-key", put("encoding", "os", value="system"), _OPENS),
        ("views-type", put("views", value=3)),
        ("views-in-lists", put("views", value=[[0], {}])),
        ("keys", lambda said, folder: {"os": "system"}),
    ],
)
REPORTS = trees(
    "one.json",
    lambda world: json.loads((world.evaluations / "one.json").read_text()),
    [("top1-type", put("top1", value={"a": 1})), ("top1-text", put("top1", value="x")), ("empty", lambda s, f: {})],
)


def _folder_of(kind: Kind) -> Kind:
    """A folder with nothing else in it."""

    def make(world: World, folder: Path) -> Path:
        (folder / "evaluations").mkdir()
        return kind.make(world, folder / "evaluations").parent

    return Kind(kind.name, make, kind.refused_by)


EVALUATIONS = [_folder_of(kind) for kind in REPORTS]


def _summary(name: str, content: str | dict[str, Any], refused_by: frozenset[str] | None = None) -> Kind:
    """A finished run with another summary, or with other values in it."""

    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.runs, folder / "runs")
        path = folder / "runs" / "one" / "summary.json"
        sound = json.loads(path.read_text())
        path.write_text(content if isinstance(content, str) else json.dumps(sound | content))
        return folder / "runs"

    return Kind(name, make, refused_by)


FINISHED = [
    _summary("deep", DEEP),
    _summary("array", "[]"),
    _summary("types", '{"config": 3}'),
    _summary("nothing", ""),
    _summary("student-type", {"student": ["x"]}),
    _summary("student-control", {"student": f"{CONTROL}|"}, nobody()),
]


def _images(name: str, data: bytes) -> Kind:
    def make(world: World, folder: Path) -> Path:
        shutil.copytree(world.images, folder / "images")
        (folder / "images" / "class0" / f"b.{'png' if data[:4] == bytes.fromhex('89504e47') else 'jpg'}").write_bytes(
            data
        )
        return folder / "images"

    return Kind(name, make)


IMAGES = [
    _images("claim-png", _png(60_000, 60_000)),
    _images("claim-jpeg", _jpeg(65_500, 65_500)),
    _images("nothing", b""),
]

_BEGUN = b"-----BEGIN CERTIFICATE-----\n"
CERTIFICATES = [
    text("nothing", b"", "x.pem"),
    text("bytes", bytes(range(256)), "x.pem"),
    text("begun", _BEGUN + b"AAAA" * 1000, "x.pem"),
    text("forged", _BEGUN + b"AAAA\n-----END CERTIFICATE-----\n", "x.pem"),
]
