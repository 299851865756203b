"""Making room in a cache: what goes, what stays byte for byte, and what is never touched."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from kdpipe._util.fingerprint import fingerprint
from kdpipe.cache import Cache, CacheReader, Store
from kdpipe.cache.locks import alone
from kdpipe.cache.tools.drop_views import drop_views
from kdpipe.cache.tools.gc import orphans, remove_cache, remove_orphans, wanted
from kdpipe.cache.tools.ls import find_caches, summarise
from kdpipe.errors import CacheError, ConfigError, CorruptionError
from kdpipe.targets import Quality, TargetsConfig
from kdpipe.verification import check_integrity
from tests import children
from tests.cache.parts import killed_at_write, kinds_of_damage, survives_kills
from tests.tiny import VIEWS, World, make_cache, make_world, tree

DENSE = TargetsConfig(kind="dense")


def arrays(folder: Path, segment: str) -> dict[str, bytes]:
    """Every file of a segment, by its name inside."""
    return tree(folder / "segments" / segment)


def test_a_listing_finds_caches_and_says_what_they_are(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "a" / "deep.zarr")
    shutil.copytree(cache_path, tmp_path / "half.zarr")
    (tmp_path / "half.zarr/commits/store.json").unlink()
    (tmp_path / "other" / "zarr.json").parent.mkdir()
    (tmp_path / "other" / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    found = list(find_caches(str(tmp_path)))
    assert found == [f"{tmp_path}/a/deep.zarr", f"{tmp_path}/half.zarr"]
    assert list(find_caches(found[0])) == found[:1]
    said, cache = summarise(found[0]), Cache(Store(cache_path))
    assert said["identity"] == fingerprint(cache.identity)
    assert (said["tasks_done"], said["tasks"], said["complete"]) == (6, 6, True)
    assert (said["views"], said["encodings"]) == ("0:3,center", ["top4-float16"])
    version = cache.identity["views"]["version"]
    assert said["policy"] == {"version": version, "seed": 3, "interpolation": "bilinear", "crop_pct": 1.0}
    assert said["root"] == cache.root_digest()
    assert said["last_run"] is not None
    assert summarise(found[1]) == {"cache": found[1], "problem": "no cache here"}
    with pytest.raises(CacheError, match="no such folder"):
        list(find_caches(str(tmp_path / "absent")))


def test_a_listing_of_a_url(world):
    import fsspec

    make_cache(world, "memory://kdpipe-ls/below/c.zarr", views=(0,))
    for place in ("memory://kdpipe-ls", "memory://kdpipe-ls/"):
        assert list(find_caches(place)) == ["memory://kdpipe-ls/below/c.zarr"]
    assert summarise("memory://kdpipe-ls/below/c.zarr")["complete"]
    fsspec.filesystem("memory").rm("/kdpipe-ls", recursive=True)


def test_orphans_are_what_verify_calls_unexpected_and_go(cache_path, tmp_path):
    out = tmp_path / "c"
    shutil.copytree(cache_path, out)
    gone = "commits/000-top4-float16-v0-3/shard-0001.tar.json"
    (out / gone).unlink()
    shutil.rmtree(out / "commits/001-top4-float16-center")
    (out / "zarr.0123.partial").write_bytes(b"half")
    found = orphans(Cache(Store(out)))
    assert set(found) >= {"zarr.0123.partial", "segments/000-top4-float16-v0-3/index/c/0/1/0/0"}
    assert set(found) >= {"segments/001-top4-float16-center/zarr.json"}
    assert remove_orphans(Store(out)) == found
    assert check_integrity(Store(out))[0] == []
    assert not (out / "segments/001-top4-float16-center").exists()
    whole = tree(Path(cache_path))
    assert all(whole[name] == data for name, data in tree(out).items())
    assert orphans(Cache(Store(out))) == {}


def test_whole_segments_go_and_the_rest_stays(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c")
    drop_views(Store(tmp_path / "c"), ["center"])
    whole = tree(Path(cache_path))
    assert tree(tmp_path / "c") == {name: data for name, data in whole.items() if "001-top4-float16-center" not in name}
    assert Cache(Store(tmp_path / "c")).views() == [0, 1, 2]


def test_what_a_segment_holds_besides_is_as_if_cached_so(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c")
    before = {v: CacheReader(cache_path, world.index, VIEWS).read("shard-0000.tar", v, 0, 40) for v in (0, 2)}
    drop_views(Store(tmp_path / "c"), [1])
    cache = Cache(Store(tmp_path / "c"))
    assert [s.name for s in cache.segments] == [
        "001-top4-float16-center", "002-top4-float16-v0-1", "003-top4-float16-v2-3"
    ]  # fmt: skip
    assert check_integrity(cache.store)[0] == []
    reader = CacheReader(str(tmp_path / "c"), world.index, VIEWS)
    for view, fields in before.items():
        now = reader.read("shard-0000.tar", view, 0, 40)
        assert all(np.array_equal(now[name], fields[name], equal_nan=name != "index") for name in fields)
    make_cache(world, tmp_path / "fresh", views=(2,))
    assert arrays(tmp_path / "c", "003-top4-float16-v2-3") == arrays(tmp_path / "fresh", "000-top4-float16-v2-3")
    whole = Cache(Store(cache_path))
    old, new = whole.quality(whole.segments[0]), cache.quality(cache.segments[1])
    assert new.views == old.views / 3 == 94
    assert new.means()["encoding_loss"] == pytest.approx(old.means()["encoding_loss"])
    assert new.means()["teacher_top1"] == pytest.approx(old.means()["teacher_top1"], abs=0.03)


def test_dropped_views_can_be_cached_again(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    once = tree(tmp_path / "c")
    drop_views(Store(tmp_path / "c"), [0, 1])
    assert Cache(Store(tmp_path / "c")).segments == []
    make_cache(world, tmp_path / "c", views=(0, 1))
    assert tree(tmp_path / "c") == once


def test_only_the_encoding_that_is_named(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    make_cache(world, tmp_path / "c", views=(0, 1), targets=DENSE)
    drop_views(Store(tmp_path / "c"), [0, 1], "top4-float16")
    assert [s.name for s in Cache(Store(tmp_path / "c")).segments] == ["001-dense-float16-v0-2"]
    with pytest.raises(ConfigError, match=r"no segment holds .* found 5:7; allowed: 0:2 in dense-float16"):
        drop_views(Store(tmp_path / "c"), [5, 6])


def test_an_unfinished_segment_keeps_what_it_has(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    (tmp_path / "c/commits/000-top4-float16-v0-2/shard-0001.tar.json").unlink()
    drop_views(Store(tmp_path / "c"), [1])
    cache = Cache(Store(tmp_path / "c"))
    assert cache.committed(cache.segments[0]) == ["shard-0000.tar", "shard-0002.tar"]
    assert make_cache(world, tmp_path / "c", views=(0,)).views() == [0]


def test_nothing_is_dropped_while_what_stays_is_damaged(cache_path, tmp_path):
    out = tmp_path / "c"
    shutil.copytree(cache_path, out)
    chunk = out / "segments/000-top4-float16-v0-3/log_prob/c/0/2/0/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(CorruptionError, match=r"log_prob/c/0/2/0/0.*sha256 differs"):
        drop_views(Store(out), [1])
    now, whole = tree(out), tree(Path(cache_path))
    assert {name for name, data in whole.items() if now[name] != data} == {str(chunk.relative_to(out))}


def test_a_cache_that_is_being_written_is_left_alone(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c")
    with alone(Store(tmp_path / "c")), pytest.raises(CacheError, match="another process is writing here"):
        drop_views(Store(tmp_path / "c"), [1])
    assert tree(tmp_path / "c") == tree(Path(cache_path))


def test_what_is_referred_to_by_place_or_content_is_wanted(world, cache_path, tmp_path, monkeypatch):
    first, second = tmp_path / "caches/a.zarr", tmp_path / "caches/b.zarr"
    shutil.copytree(cache_path, first)
    make_cache(world, second, views=(0,))
    runs = tmp_path / "runs"
    runs.mkdir()

    def has(keep: dict | str) -> list[bool]:
        (runs / "cache.json").write_text(json.dumps(keep))
        references = wanted([str(runs / "*.json")])
        return [references.has(Store(first)), references.has(Store(second))]

    assert has({"cache": "caches/a.zarr", "root": "of former content"}) == [True, False]
    assert has({"root": Cache(Store(second)).root_digest()}) == [False, True]
    assert has({"cache": "/elsewhere", "root": "x"}) == [False, False]
    monkeypatch.chdir(tmp_path)
    assert wanted(["caches/b.zarr"]).has(Store(second))
    for keep in ({"loss": 1}, [1]):
        with pytest.raises(ConfigError, match=r"cache.json: names no cache: nothing was deleted"):
            has(keep)
    for absent in ("runs/no*.json", "nothing"):
        with pytest.raises(ConfigError, match="matches nothing"):
            wanted([absent])
    with pytest.raises(ConfigError, match="not a cache"):
        wanted(["runs"])


def test_a_whole_cache_goes_and_nothing_that_is_none(cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c")
    size = sum(len(data) for data in tree(tmp_path / "c", ()).values())
    assert remove_cache(Store(tmp_path / "c")) == size
    assert not (tmp_path / "c").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/zarr.json").write_text("{}")
    with pytest.raises(CacheError, match="not a cache: nothing was deleted"):
        remove_cache(Store(tmp_path / "thesis"))
    assert (tmp_path / "thesis/zarr.json").exists()


def dropping(out: str) -> None:
    drop_views(Store(out), [1])


def deleting(out: str) -> None:
    remove_cache(Store(out))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, three dense views and the center: few files, so that a kill at each write is affordable."""
    folder: Path = tmp_path_factory.mktemp("small")
    world: World = make_world(folder / "world", samples=(20, 9))
    make_cache(world, folder / "c", targets=DENSE)
    return folder / "c"


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_drop_survives_a_kill_at_any_write(small, tmp_path, every, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    seen = []

    def check(folder: Path) -> set[str]:
        seen.append(Cache(Store(folder)).views())
        return kinds_of_damage(folder)

    monkeypatch.setattr("tests.cache.parts.kinds_of_damage", check)
    assert survives_kills(every, small, tmp_path / "c", dropping) > 20
    # What is kept can be read at any instant.
    assert all({0, 2, "center"} <= set(views) for views in seen)


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_deletion_that_was_killed_can_be_repeated(small, tmp_path, every, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    call, out, code = 1, tmp_path / "c", -signal.SIGKILL
    while code == -signal.SIGKILL:
        shutil.copytree(small, out)
        code = children.run(killed_at_write, call, deleting, str(out))
        if code == -signal.SIGKILL:
            assert kinds_of_damage(out) <= {"unexpected"}, call
            assert list(find_caches(str(tmp_path))) == [str(out)], call
            deleting(str(out))
        assert not out.exists()
        call += every
    assert call > 15


def dropping_data_first(out: str) -> None:
    """The protocol the wrong way round, and a kill where it hurts."""
    import kdpipe.cache.tools.drop_views as drop

    def remove_data(cache: Cache, names: list[str]) -> None:
        for name in names:
            for file in cache.store.files(f"segments/{name}"):
                cache.store.remove(file)
        children.die()

    drop.remove_records = remove_data
    dropping(out)


def test_the_check_sees_data_that_went_before_its_records(small, tmp_path):
    shutil.copytree(small, tmp_path / "c")
    assert children.run(dropping_data_first, str(tmp_path / "c")) == -signal.SIGKILL
    assert "a file of the cache is missing" in kinds_of_damage(tmp_path / "c")


def test_a_share_of_a_task_has_its_means():
    whole = Quality(views=40, labelled=40, top1=20, top5=36, retained_mass=30.0, kl=4.0)
    assert whole.part(1, 4) == Quality(views=10, labelled=10, top1=5, top5=9, retained_mass=7.5, kl=1.0)
    assert whole.part(4, 4) is whole
