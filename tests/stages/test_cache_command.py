"""`kdpipe cache` as one types it: what it prints, what it asks, what it refuses."""

import json
import shutil
from pathlib import Path

import click
import pytest

from kdpipe.cache import Cache, Store
from kdpipe.cache.locks import alone
from tests.cache.parts import part
from tests.stages.running import kdpipe, refused
from tests.tiny import make_cache, tree


@pytest.fixture
def folder(cache_path, tmp_path) -> Path:
    """Two caches of equal content."""
    for name in ("a", "b"):
        shutil.copytree(cache_path, tmp_path / "caches" / name)
    return tmp_path / "caches"


def result(*args: object) -> dict:
    done = kdpipe("cache", *args, "--json")
    assert done.code == 0, done
    return json.loads(done.out)


def test_ls(folder, tmp_path):
    (folder / "b/commits/store.json").write_text("{}")
    text = kdpipe("cache", "ls", folder).out
    assert "tests.tiny:network" in text
    assert "0:3,center top4-float16" in text
    assert "6/6" in text
    assert "can't be opened" in text
    one, two = result("ls", folder)["caches"]
    assert one["root"] == Cache(Store(folder / "a")).root_digest()
    assert two["problem"].startswith("a record of the cache is damaged")
    (tmp_path / "empty").mkdir()
    assert kdpipe("cache", "ls", tmp_path / "empty").out == f"no caches below {tmp_path}/empty\n"
    assert "no such folder" in refused("cache", "ls", tmp_path / "absent")


def test_gc_asks_before_it_deletes(folder, monkeypatch):
    before = tree(folder)
    assert kdpipe("cache", "gc", folder / "a").out == "nothing to delete\n0 bytes would be freed\n"
    (folder / "a/segments/notes.txt").write_text("hello")
    assert "notes.txt" in kdpipe("cache", "gc", folder / "a", "--dry-run").out
    assert "no terminal to confirm on. Add --yes" in refused("cache", "gc", folder / "a")
    monkeypatch.setattr("kdpipe_stages.cache_gc._nobody_to_ask", lambda: False)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: (_ for _ in ()).throw(click.Abort()))
    assert kdpipe("cache", "gc", folder / "a").code == 1
    assert (folder / "a/segments/notes.txt").exists()
    monkeypatch.setattr(click, "confirm", lambda *_, **__: True)
    assert kdpipe("cache", "gc", folder / "a").out.endswith("5 bytes freed\n")
    assert tree(folder) == before


def test_gc_of_a_folder_keeps_what_is_referred_to(folder, world, tmp_path):
    make_cache(world, folder / "c", views=(0,))
    (folder / "thesis").mkdir()
    (folder / "thesis/thesis.tex").write_text("years of work")
    (tmp_path / "runs").mkdir()
    kept = kdpipe("inspect", folder / "c", "--json").out
    (tmp_path / "runs/cache.json").write_text(kept)
    args = ("--folder", folder, "--keep", tmp_path / "runs/*.json", "--keep", folder / "b")
    looked = result("gc", *args, "--dry-run")
    assert [c["cache"] for c in looked["caches"]] == [str(folder / "a")]
    assert not looked["deleted"]
    assert (folder / "a").exists()
    with alone(Store(folder / "a")):
        busy = kdpipe("cache", "gc", *args, "--yes")
        assert "left alone" in busy.err
        assert (folder / "a").exists()
    done = result("gc", *args, "--yes")
    assert done["deleted"]
    assert done["bytes"] == looked["bytes"] > 10_000
    assert sorted(p.name for p in folder.iterdir()) == ["b", "c", "thesis"]


def test_gc_leaves_alone_what_it_can_not_judge(folder):
    (folder / "a/commits/store.json").write_text("{}")
    done = kdpipe("cache", "gc", "--folder", folder, "--keep", folder / "b", "--yes")
    assert done.code == 0
    assert "left alone" in done.err
    assert (folder / "a").exists()


def test_gc_refuses_in_one_line(folder, tmp_path):
    before = tree(folder)
    (tmp_path / "x.json").write_text('{"loss": 1}')
    assert "nothing to do" in refused("cache", "gc")
    assert "--folder and --keep go together" in refused("cache", "gc", "--folder", folder, "--yes")
    assert "matches nothing" in refused("cache", "gc", "--folder", folder, "--keep", "no*.json", "--yes")
    assert "names no cache" in refused("cache", "gc", "--folder", folder, "--keep", tmp_path / "x.json", "--yes")
    assert "no cache here" in refused("cache", "gc", tmp_path, "--yes")
    assert tree(folder) == before


def test_drop_views(folder):
    before = tree(folder / "a")
    looked = result("drop-views", folder / "a", "--views", "1:3", "--dry-run")
    assert looked["moved"] == {"002-top4-float16-v0-1": "000-top4-float16-v0-3"}
    assert "no terminal to confirm on" in refused("cache", "drop-views", folder / "a", "--views", "1:3")
    assert tree(folder / "a") == before
    done = result("drop-views", folder / "a", "--views", "1:3", "--yes")
    assert (done["views"], done["deleted"]) == ("0:1,center", True)
    assert kdpipe("verify", folder / "a", "--integrity-only").code == 0
    again = refused("cache", "drop-views", folder / "a", "--views", "1:3", "--yes")
    assert "no segment holds these views; found 1:3" in again
    assert "invalid --views" in refused("cache", "drop-views", folder / "a", "--views", "some")


def test_what_is_merged_is_verified_like_any_cache(world, tmp_path):
    for i, positions in enumerate([(0,), (1, 2)]):
        make_cache(part(world, tmp_path / str(i), *positions), tmp_path / f"{i}.zarr")
    done = result("merge", tmp_path / "c", tmp_path / "0.zarr", tmp_path / "1.zarr")
    assert (done["tasks"], done["shards"], done["views"]) == (6, 3, "0:3,center")
    seen = kdpipe("verify", tmp_path / "c", "--index", world.index_path, "--trust", "tests.tiny", "--json")
    assert seen.code == 0, seen
    assert json.loads(seen.out)["truth"]["views"] == 376
    make_cache(world, tmp_path / "more.zarr", views=(9,))
    more = result("merge", tmp_path / "c", tmp_path / "0.zarr", tmp_path / "1.zarr", tmp_path / "more.zarr")
    assert (more["tasks"], more["skipped"], more["views"]) == (3, 6, "0:3,9:10,center")
    make_cache(world, tmp_path / "batch.zarr", views=(9,), batch_size=4)
    line = refused("cache", "merge", tmp_path / "d", tmp_path / "more.zarr", tmp_path / "batch.zarr")
    assert "another numerics of view 9 (top4-float16): batch_size" in line


def test_push_and_pull(folder, tmp_path):
    import fsspec

    url = "memory://kdpipe-push/c.zarr"
    assert result("push", folder / "a", url, "--views", "center")["tasks"] == 3
    assert result("push", folder / "a", url)["skipped"] == 3
    back = result("pull", url, tmp_path / "back", "--shards-matching", "*-0001.tar")
    assert back["segments"] == {"000-top4-float16-v0-3": 1, "001-top4-float16-center": 1}
    assert "complete for all 3 shards: views 0:3,center" in kdpipe("cache", "pull", url, tmp_path / "back").out
    assert tree(tmp_path / "back") == tree(folder / "a")
    assert "no segment holds these views" in refused("cache", "pull", url, tmp_path / "x", "--views", "7")
    assert not (tmp_path / "x").exists()
    fsspec.filesystem("memory").rm("/kdpipe-push", recursive=True)
