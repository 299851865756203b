"""Records that somebody made up and sealed: of the same meaning, or refused in one line, whatever they hold."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs import blosc

from kdpipe._util.fingerprint import sha256
from kdpipe.cache import Cache, CacheReader, Store, create, read_canaries
from kdpipe.cache.chunks import ChecksumError, decoded
from kdpipe.cache.commit import read_provenance
from kdpipe.cache.manifest import CacheRecord
from kdpipe.cache.modules import calibration_name, put_part, read_calibration, read_part
from kdpipe.cache.sealed import seal
from kdpipe.cache.tools.transfer import transfer
from kdpipe.errors import CacheError, CorruptionError, KdpipeError
from kdpipe.targets import Calibration, TargetsConfig
from kdpipe.verification import check_integrity
from tests.cache.resealing import document, rewrite
from tests.caching.featured import TINY
from tests.tiny import VIEWS, World, make_cache, tree

MUTATIONS, SECONDS = 300, 5.0
KEYS = ["../../x", "x", "", "a\nb", "files", "digest", "segments/../../x", "0" * 64]
SEGMENT = "segments/000-top3-float16+pooled-int8+map-float16-r2-v0-2"


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**60, 2**64, 10**300, -(2**63), 0.5, 1.0, -1e308, 1e308),
    *(
        "",
        "x",
        "../../x",
        "/x",
        "a\\b",
        "a\nb",
        "\0",
        "\x1b[31m",
        "\ud800",
        "x" * 5000,
        "os:system",
        "0" * 64,
        "memory://x",
    ),
    *("center", "float32", "int8", "topk", "none", "pickle", "2020-01-01"),
    *([], {}, [[]], [0], [0, 1], [1, 0], ["center"], {"a": 1}, {"bytes": -1, "sha256": ""}, nested(200), nested(400)),
]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory) -> Path:
    """All kinds of records: logits, features in int8, a basis and a head; not to be changed."""
    path = tmp_path_factory.mktemp("hostile") / "whole"
    targets = TargetsConfig(k=3, pooled="int8", map="float16", map_rank=2)
    make_cache(world, path, views=(0, 1, "center"), targets=targets, **TINY)
    return path


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "copied")
    return tmp_path / "copied"


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, part in inner for place in places(part, (*at, key)))]


def mutate(content: dict[str, Any], rng: random.Random) -> Any:
    """One value replaced, deleted, added, doubled or renamed; or all of it."""
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    *way, key = rng.choice(places(content))
    holder: Any = content
    for part in way:
        holder = holder[part]
    kind = rng.choice(["replace"] * 5 + ["delete", "add", "rename", "double"])
    if kind == "replace":
        holder[key] = rng.choice(VALUES)
    elif kind == "delete":
        del holder[key]
    elif isinstance(holder, dict):
        new = rng.choice(KEYS)
        holder[new] = holder.pop(key) if kind == "rename" else rng.choice(VALUES)
    elif kind == "double":
        holder.append(holder[key])
    else:
        holder.insert(key, rng.choice(VALUES))
    return content


def read_everything(url: Path, world: World) -> dict[str, Any]:
    """What a cache says to who opens, trains from and inspects it."""
    cache = Cache(Store(url))
    said: dict[str, Any] = {"root": cache.root_digest(), "canaries": [c.pixels for c in read_canaries(cache)]}
    said["runs"], said["bytes"] = read_provenance(cache.store), [cache.bytes(s) for s in cache.segments]
    for segment in cache.segments:
        said[segment.name] = cache.quality(segment).means()
        calibration = read_calibration(cache, segment.encoding)
        said[segment.name, "mean"] = None if calibration is None else calibration.mean.numpy()
    said["policy"] = cache.views_config
    reader = CacheReader(str(url), world.index, VIEWS)
    for shard in world.index.shards:
        for view in reader.views:
            said |= {(shard.name, view, n): a for n, a in reader.read(shard.name, view, 0, shard.samples).items()}
    return said


def differs(one: dict[str, Any], two: dict[str, Any]) -> list[Any]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(a == b)

    return [key for key in {**one, **two} if key not in one or key not in two or not same(one[key], two[key])]


def test_300_resealed_mutations_are_refused_or_change_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpipe.cache.store.fsync", lambda _: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    copied = tmp_path / "copied"
    make_cache(world, copied, views=(0,), targets=TargetsConfig(k=3, pooled="int8", map="float16", map_rank=2), **TINY)
    rng, truth = random.Random(0), read_everything(copied, world)
    names = sorted(str(p.relative_to(copied)) for p in copied.rglob("*.json"))
    before, opened = tree(copied, ()), []
    refusals: list[str] = []
    for i in range(MUTATIONS):
        name = names[i % len(names)]
        try:
            changed = rewrite(copied, name, lambda content: mutate(content, rng))
        except (TypeError, ValueError, AttributeError, UnicodeError):  # no record can be made of it
            continue
        where, began = f"mutation {i}, of {name}", time.monotonic()
        try:
            check_integrity(Store(copied))
            said = read_everything(copied, world)
            transfer(str(copied), str(tmp_path / "target" / "c"))
        except KdpipeError as e:
            refusals.append(str(e))
        else:
            # Another root digest says that this is another cache; nothing else may say anything else.
            free = {"runs"} if name == "provenance.json" else set()
            changes = set(differs(truth, said)) - free
            assert said["root"] != truth["root"] or not changes, (where, changes)
            opened.append(name)
        assert time.monotonic() - began < SECONDS, where
        assert {p.name for p in tmp_path.iterdir()} <= {"copied", "target"}, where
        assert {p.name for p in tmp_path.glob("target/*")} <= {"c"}, where
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        for path, data in changed.items():
            path.write_bytes(data)
        assert i % 50 or tree(copied, ()) == before, where
    assert [line for line in refusals if len(line.splitlines()) > 1] == []
    assert 0 < len(opened) < MUTATIONS / 3  # some values are free, such as a host's name


def change(path: tuple[Any, ...], value: Any) -> Any:
    def apply(content: dict[str, Any]) -> None:
        holder: Any = content
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value

    return apply


TASK = f"commits/{SEGMENT.removeprefix('segments/')}/shard-0000.tar.json"
RECORD = f"commits/{SEGMENT.removeprefix('segments/')}/segment.json"
IDENTITY = ("attributes", "kdpipe", "identity")
FILE = f"{SEGMENT}/index/c/0/0/0/0"
REFUSED = {
    "negative bytes": (TASK, ("files", FILE, "bytes"), -1, "bytes: input should be greater"),
    "bytes as text": (TASK, ("files", FILE, "bytes"), "904", "bytes: input should be a valid integer"),
    "a flag for a number": (TASK, ("quality", "views"), True, "quality.views: input should be a valid integer"),
    "more views than there are": (TASK, ("quality", "views"), 10**6, "quality.views: the task has 80"),
    "infinite": (TASK, ("quality", "kl"), 1e300, "quality.kl: input should be less"),
    "more right than labelled": (TASK, ("quality", "labelled"), 0, "top1 <= top5 <= labelled <= views"),
    "another shard": (TASK, ("shard", "samples"), 41, "a task that this cache does not have"),
    "a digest of another length": (TASK, ("segment_digest",), "00", "segment_digest: string should match"),
    "a null for what is left out": (TASK, ("segment_digest",), None, "segment_digest: input should be a valid string"),
    "an unknown key": (TASK, ("exec",), "os:system", "exec: extra inputs are not permitted"),
    "another number": (RECORD, ("segment", "number"), 7, "it describes segment 007-"),
    "views with a gap": (RECORD, ("segment", "views"), [0, 2], "segment.views: consecutive numbers"),
    "k beyond the classes": (RECORD, ("segment", "encoding", "k"), 2**23, "k of topk is 1 to"),
    "a dtype that is none": (RECORD, ("segment", "encoding", "dtype"), "object", "input should be 'float16' or"),
    "a shape of 2^60": (
        RECORD,
        ("segment", "encoding", "pooled", "shape"),
        [2**60],
        "pooled.shape.0: input should be less",
    ),
    "a feature that is null": (RECORD, ("segment", "encoding", "map"), None, "map is null"),
    "classes of another teacher": (RECORD, ("segment", "encoding", "num_classes"), 1000, "num_classes: the cache has"),
    "an unknown device": (RECORD, ("segment", "numerics", "threads"), -3, "numerics.threads: input should be greater"),
    "blocks of 2^60": ("zarr.json", (*IDENTITY, "block_size"), 2**60, "block_size: input should be less"),
    "2^31 classes": ("zarr.json", (*IDENTITY, "teacher", "num_classes"), 2**31, "num_classes: input should be less"),
    "no shards": ("zarr.json", (*IDENTITY, "shards"), [], "shards: list should have at least 1 item"),
    "a policy of text": (
        "zarr.json",
        (*IDENTITY, "views", "hflip"),
        "0.5",
        "views.hflip: input should be a valid number",
    ),
    "render size 0": ("zarr.json", (*IDENTITY, "render_size"), 0, "render_size: input should be greater"),
    "another render size": ("zarr.json", (*IDENTITY, "render_size"), 17, r"shape\[1\]: not what the record"),
    "a teacher as a list": ("zarr.json", (*IDENTITY, "teacher"), [], "teacher: input should be a valid dictionary"),
    "consolidated metadata": (
        "zarr.json",
        ("consolidated_metadata",),
        {"metadata": {}},
        "consolidated_metadata: not what",
    ),
    "a canary of no view": (
        "canaries/labels.json",
        ("canaries", 0, "view"),
        "x",
        r"canaries.0.view.*: input should be",
    ),
    "a run of no date": ("provenance.json", ("runs", 0, "date"), "now", "runs.0.date: string should match"),
    "a head of nobody": ("commits/head.json", ("about", "teacher"), 3, "teacher: input should be a valid string"),
    "another part": ("commits/head.json", ("part",), "tail", "field required"),
    "an array of 2^60 rows": (f"{SEGMENT}/index/zarr.json", ("shape", 2), 2**60, r"shape\[2\]: not what the record"),
    "a stranger's codec": (
        f"{SEGMENT}/index/zarr.json",
        ("codecs", 0, "configuration", "codecs", 1, "name"),
        "os.system",
        r"codecs\[0\].configuration.codecs\[1\].name: not what",
    ),
    "a float for a size": (f"{SEGMENT}/index/zarr.json", ("shape", 0), 2.0, "a number has another type"),
    "metadata as a list": (f"{SEGMENT}/zarr.json", (), [], "not an object"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_record_of_another_shape_is_refused_by_file_and_key(case, copied, tmp_path):
    name, path, value, said = case
    rewrite(copied, name, change(path, value) if path else lambda _: value)
    read = read_provenance if name == "provenance.json" else Cache
    with pytest.raises(CorruptionError, match=said) as e:
        read(Store(copied))
    assert name in str(e.value)
    assert check_integrity(Store(copied))[0]
    with pytest.raises(CacheError):
        transfer(str(copied), str(tmp_path / "target"))


def test_deep_metadata_with_the_right_digests_are_one_line(copied):
    name = f"{SEGMENT}/zarr.json"
    text = '{"attributes": ' + "[" * 100_000 + "]" * 100_000 + "}"
    before = sha256((copied / name).read_bytes())
    (copied / name).write_text(text)
    for record in sorted((copied / "commits").rglob("segment.json")):
        held = document(record)
        if before in held["files"].values() and name in held["files"]:
            record.write_bytes(seal({**held, "files": {**held["files"], name: sha256(text.encode())}}))
    with pytest.raises(CorruptionError, match="nested too deeply"):
        Cache(Store(copied))


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[]", "3", "null", "{", "9" * 5000, '{"digest": NaN}', "\ud7ff", '{"a": 1e999}']
)
@pytest.mark.parametrize(
    "name", ["zarr.json", "commits/store.json", TASK, RECORD, "commits/head.json", "provenance.json"]
)
def test_what_is_no_record_is_one_line(copied, name, text):
    (copied / name).write_text(text)
    read = read_provenance if name == "provenance.json" else Cache
    with pytest.raises(CorruptionError) as e:
        read(Store(copied))
    assert name in str(e.value)
    assert len(str(e.value).splitlines()) == 1
    assert check_integrity(Store(copied))[0]


def test_a_record_is_not_read_beyond_its_bound(copied):
    with (copied / TASK).open("wb") as file:
        file.truncate(2**34)  # of nothing, which takes no room
    with pytest.raises(CorruptionError, match=r"larger than any such file; allowed: \d+ bytes"):
        Cache(Store(copied))


def test_a_calibration_of_another_map_is_refused(copied):
    """Its own name and digests are right."""
    cache = Cache(Store(copied))
    [name] = [n for n in cache.parts if n != "head"]
    tensors, about = read_part(cache, name)
    other = {**tensors, "mean": tensors["mean"][:2].clone()}
    put_part(cache, calibration_name(other), other, about)

    def rename(content: dict[str, Any]) -> None:
        content["segment"]["encoding"]["map"]["calibration"] = calibration_name(other)

    rewrite(copied, RECORD, rename)
    cache = Cache(Store(copied))
    with pytest.raises(CorruptionError, match=r"mean: not of the map that needs it; found torch.float32 \(2,\)"):
        read_calibration(cache, cache.segments[0].encoding)
    assert isinstance(read_calibration(cache, cache.segments[1].encoding), Calibration)


class TestChunks:
    def sealed(self, data: bytes) -> bytes:
        return data + google_crc32c.value(data).to_bytes(4, "little")

    @pytest.mark.parametrize("cname", [b"zstd", b"lz4", b"zlib", b"blosclz"])
    def test_only_zstd_of_the_right_size(self, cname):
        x = np.arange(1000, dtype="float32").reshape(10, 100)
        data = self.sealed(blosc.compress(x, cname, 5, 2))
        if cname != b"zstd":
            with pytest.raises(ChecksumError, match="size or codec"):
                decoded(data, x.shape, "float32")
            return
        assert np.array_equal(decoded(data, x.shape, "float32"), x)
        for shape in ((10, 101), (10, 99), (2**20, 2**20)):
            with pytest.raises(ChecksumError, match="size or codec"):
                decoded(data, shape, "float32")

    def test_a_header_is_not_believed(self):
        data = bytearray(blosc.compress(np.zeros(1000, "float32"), b"zstd", 5, 2))
        data[4:8] = (2**31 - 1).to_bytes(4, "little")
        with pytest.raises(ChecksumError, match="size or codec"):
            decoded(self.sealed(bytes(data)), (1000,), "float32")
        for junk in (b"", b"\2\1\x94\4", bytes(16), bytes(data[:16])):
            with pytest.raises(ChecksumError):
                decoded(self.sealed(junk), (1000,), "float32")

    @pytest.mark.parametrize(
        ("offset", "length"), [(2**63, 30), (0, 2**63), (2**64 - 2, 3), (10**6, 1), (2**64 - 1, 2**64 - 1), (0, 0)]
    )
    def test_an_index_of_chunks_stays_in_its_file(self, world, copied, offset, length):
        """The first entry, with checksum, size and sha256 right."""
        data = bytearray((copied / FILE).read_bytes())
        start = len(data) - 4 - 16 * 2 * 3
        data[start : start + 16] = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
        data[-4:] = google_crc32c.value(bytes(data[start:-4])).to_bytes(4, "little")
        (copied / FILE).write_bytes(data)
        rewrite(copied, TASK, change(("files", FILE, "sha256"), sha256(bytes(data))))
        reader = CacheReader(str(copied), world.index, VIEWS)
        with pytest.raises(CorruptionError, match=r"index of chunks is wrong|a chunk is missing|checksum is wrong"):
            reader.read("shard-0000.tar", 0, 0, 16)

    def test_all_chunks_in_one_place_are_refused(self, world, copied):
        """Or a small file would stand for any amount of memory."""
        data = bytearray((copied / FILE).read_bytes())
        start = len(data) - 4 - 16 * 2 * 3
        data[start:-4] = ((0).to_bytes(8, "little") + int(start).to_bytes(8, "little")) * 6
        data[-4:] = google_crc32c.value(bytes(data[start:-4])).to_bytes(4, "little")
        (copied / FILE).write_bytes(data)
        rewrite(copied, TASK, change(("files", FILE, "sha256"), sha256(bytes(data))))
        reader = CacheReader(str(copied), world.index, VIEWS)
        with pytest.raises(CorruptionError, match="index of chunks is wrong"):
            reader.read("shard-0000.tar", 0, 0, 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", -1), ("views", [0, "x"]), ("root", "x"), ("cache", 3), ("cache", "a\nb"), ("bytes", 1.5), ("more", 1)],
)
def test_a_file_that_names_targets_has_a_schema_too(whole, tmp_path, key, value):
    cache, path = Cache(Store(whole)), tmp_path / "targets.json"
    CacheRecord.of(cache, cache.segments[0].encoding, [0, 1]).write(str(path))
    assert CacheRecord.read(str(path)).views == [0, 1]
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CacheError, match=f"no record of a cache; found .*{key}"):
        CacheRecord.read(str(path))


def test_an_identity_that_no_cache_can_have_is_not_written(whole, tmp_path):
    cache = Cache(Store(whole))
    with pytest.raises(CacheError, match="block_size"):
        create(Store(tmp_path / "c"), {**cache.identity, "block_size": 0}, read_canaries(cache))
    assert not (tmp_path / "c").exists()
