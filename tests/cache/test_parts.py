"""Parts of a cache: vouched for, found damaged or swapped, carried along and let go with what needs them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kdpipe.cache import Cache, CacheReader, CacheRequest, Store
from kdpipe.cache.layout import part_file, part_record
from kdpipe.cache.modules import put_calibration, put_part, read_part
from kdpipe.cache.tools.drop_views import drop_views
from kdpipe.cache.tools.gc import orphans, remove_orphans
from kdpipe.cache.tools.merge import merge
from kdpipe.cache.tools.transfer import transfer
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.targets import Calibration, TargetsConfig
from kdpipe.verification import check_integrity
from tests.cache.parts import survives_kills
from tests.caching.featured import TINY, stored
from tests.tiny import VIEWS, World, make_cache, tree

MAP = TargetsConfig(kind="none", map="int8", map_rank=2)
BOTH = TargetsConfig(k=3, pooled="float16", map="float16", map_rank=2)


@pytest.fixture(scope="module")
def featured(world: World, tmp_path_factory) -> str:
    """Views 0 to 2 and center with logits and both features; not to be changed."""
    path = tmp_path_factory.mktemp("featured") / "c.zarr"
    make_cache(world, path, targets=BOTH, **TINY)
    return str(path)


TAIL = {
    "model": "resnet18",
    "model_kwargs": {"depths": (1, 2)},
    "num_classes": 7,
    "input_size": 16,
    "stage": "layer4",
    "norm": None,
    "channels_last": False,
}


@pytest.fixture
def copied(featured, tmp_path) -> Path:
    shutil.copytree(featured, tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(p["where"], p["what"]) for p in check_integrity(Store(folder))[0]]


def test_a_part_is_read_as_it_was_written(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c")
    cache = Cache(Store(tmp_path / "c"))
    before, tensors = cache.root_digest(), {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, 1, 3)}
    put_part(cache, "tail", tensors, TAIL | {"teacher": cache.identity["teacher"]["weights"]})
    for one in (cache, Cache(cache.store)):
        assert list(one.parts) == ["tail"]
        read, about = read_part(one, "tail")
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)
        assert about["model_kwargs"] == {"depths": [1, 2]}
    assert problems(tmp_path / "c") == []
    assert cache.root_digest() != before
    # Nobody replaces a part that is there.
    put_part(cache, "tail", {"a": torch.zeros(1)}, {})
    assert set(read_part(cache, "tail")[0]) == {"a", "b"}
    # An open cache finds what is stored after it was opened.
    other = Cache(cache.store)
    put_part(cache, "head", tensors, {"teacher": "0" * 64})
    assert read_part(other, "head")[1] == {"teacher": "0" * 64}
    with pytest.raises(CacheError, match="the cache has no part nothing"):
        read_part(other, "nothing")


def test_a_calibration_is_named_by_its_content(copied):
    cache, generator = Cache(Store(copied)), torch.Generator().manual_seed(0)
    one = Calibration.fit(torch.randn(40, 5, generator=generator), 2)
    about = {"rank": 2, "explained": one.explained, "views": 40, "tokens": 40}
    name = put_calibration(cache, one, about)
    assert put_calibration(cache, one, about) == name
    # No segment needs it: the next who cleans up takes it away.
    assert problems(copied) == []
    assert set(orphans(cache)) == {part_file(name), part_record(name)}
    remove_orphans(cache.store)
    assert name not in Cache(cache.store).parts
    assert problems(copied) == []


@pytest.mark.parametrize("which", ["head", "calibration"])
def test_a_damaged_part_is_found(world, copied, which):
    cache = Cache(Store(copied))
    name = next(part for part in cache.parts if part.startswith(which))
    file = copied / part_file(name)
    data = bytearray(file.read_bytes())
    data[-9] ^= 4
    file.write_bytes(data)
    assert problems(copied) == [(part_file(name), "its bytes are not those that were written (sha256 differs)")]
    with pytest.raises(CorruptionError, match=r"a part of the cache is damaged.*Delete its record"):
        read_part(cache, name)
    file.unlink()
    assert [where for where, _ in problems(copied)] == [part_file(name)]
    (copied / part_record(name)).write_bytes(b"{}")
    assert [where for where, _ in problems(copied)] == [part_record(name)]
    (copied / part_record(name)).unlink()
    why = "keeps pooled features, whose logits need" if which == "head" else "can't be read without"
    [(where, what)] = problems(copied)
    assert where == part_record(name)
    assert what.startswith(f"missing: a segment {why} this part")


def test_another_teachers_head_is_found(world, copied, tmp_path):
    """With its own record, whose digest is right."""
    make_cache(world, tmp_path / "other", views=(0,), targets=BOTH, **TINY | {"model_kwargs": {"seed": 1}})
    for name in (part_file("head"), part_record("head")):
        shutil.copy(tmp_path / "other" / name, copied / name)
    _, about = read_part(Cache(Store(tmp_path / "other")), "head")
    assert problems(copied) == [
        (part_record("head"), "it is of another cache: its identity_digest differs"),
        (part_record("head"), f"it is of another teacher: of weights {about['teacher'][:16]}"),
    ]
    # It doesn't count, and is stored anew.
    cache = Cache(Store(copied))
    assert (cache.unrelated, "head" in cache.parts) == ([part_record("head")], False)
    make_cache(world, copied, targets=BOTH, **TINY)
    assert problems(copied) == []


def test_a_calibration_under_anothers_name_is_found(copied):
    cache, [name] = Cache(Store(copied)), [n for n in Cache(Store(copied)).parts if n != "head"]
    tensors, about = read_part(cache, name)
    for file in (part_file(name), part_record(name)):
        cache.store.remove(file)
    del cache.parts[name]
    put_part(cache, name, {**tensors, "mean": tensors["mean"] + 1}, about)
    assert problems(copied) == [(part_record(name), "its name is of another content")]


def test_a_torn_write_is_unexpected_and_swept(world, copied):
    whole = tree(copied)
    (copied / "parts/tail.safetensors").write_bytes(b"half of it")
    assert [(w, what.split(":")[0]) for w, what in problems(copied)] == [("parts/tail.safetensors", "unexpected")]
    make_cache(world, copied, targets=BOTH, **TINY)
    assert tree(copied) == whole


def test_dropping_the_last_views_of_a_map_lets_its_calibration_go(world, tmp_path):
    cache = make_cache(world, tmp_path / "c", views=(0, 1), targets=MAP, **TINY)
    make_cache(world, tmp_path / "c", views=(0, 1, 2), targets=BOTH, **TINY)
    other = make_cache(world, tmp_path / "c", views=(0,), targets=MAP.model_copy(update={"map_rank": 3}), **TINY)
    [shared] = cache.parts
    [three] = [name for name in other.parts if name not in (shared, "head")]
    drop_views(cache.store, [0], "map-int8-r3")
    now = Cache(cache.store)
    assert list(now.parts) == [shared, "head"]
    assert not (tmp_path / "c" / part_file(three)).exists()
    drop_views(cache.store, [0, 1])
    now = Cache(cache.store)
    assert now.views() == [2]
    assert list(now.parts) == [shared, "head"]
    assert problems(tmp_path / "c") == []
    assert now.quality(now.segments[0]).means()["map_error"] > 0


class TestMoving:
    @pytest.mark.parametrize("views", [None, [0, 2]])
    def test_a_copy_has_the_parts(self, world, featured, tmp_path, views):
        cache, report = transfer(featured, str(tmp_path / "d"), views)
        origin = Cache(Store(featured))
        assert cache.parts == origin.parts
        assert problems(tmp_path / "d") == []
        rows, others = stored(cache, 2), stored(origin, 2)
        assert all(torch.equal(rows[name], others[name]) for name in others)
        assert report.bytes > sum(record["bytes"] for record in cache.parts.values())
        before = tree(tmp_path / "d")
        transfer(featured, str(tmp_path / "d"), views)
        assert tree(tmp_path / "d") == before
        reader = CacheReader(str(tmp_path / "d"), world.index, VIEWS, request=CacheRequest(map=True, head=True))
        assert reader.decode({n: r[:5] for n, r in rows.items()}).map.shape == (5, 5, 4, 4)

    def test_a_damaged_part_is_not_copied(self, copied, tmp_path):
        (copied / part_file("head")).write_bytes(b"nonsense")
        with pytest.raises(CorruptionError, match="a part of the cache is damaged"):
            transfer(str(copied), str(tmp_path / "d"))

    def test_merged_encodings_have_the_parts_of_all(self, world, featured, tmp_path):
        make_cache(world, tmp_path / "l", views=(0,), targets=TargetsConfig(kind="dense"), **TINY)
        cache, _ = merge(str(tmp_path / "c"), [str(tmp_path / "l"), featured])
        assert cache.parts == Cache(Store(featured)).parts
        again, report = merge(str(tmp_path / "c"), [str(tmp_path / "l"), featured])
        assert (report.tasks, report.bytes) == (0, 0)
        assert again.root_digest() == cache.root_digest()


@pytest.mark.slow
def test_a_copy_with_parts_survives_a_kill(featured, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    assert survives_kills(11, None, tmp_path / "c", copying, featured) > 20


def copying(out: str, source: str) -> None:
    transfer(source, out, [1])


def test_a_cache_without_parts_is_as_it_always_was(cache_path):
    """Digests and records of caches of logits alone do not know of features."""
    cache = Cache(Store(cache_path))
    assert cache.parts == {}
    record = json.loads((Path(cache_path) / cache.segments[0].commit("shard-0001.tar")).read_text())
    assert set(record["quality"]) == {"views", "labelled", "top1", "top5", "retained_mass", "kl"}
    segment = json.loads((Path(cache_path) / cache.segments[0].record).read_text())
    assert set(segment["segment"]["encoding"]) == {"kind", "k", "dtype", "num_classes"}
