"""What a cache holds, what it refuses, and how it grows."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from kdpipe.cache import ArrayReader, Cache, CacheReader, CacheRequest, Store
from kdpipe.cache.locks import alone
from kdpipe.errors import CacheError, IdentityError, IndexFileError, TargetsError
from kdpipe.loader import Loader
from kdpipe.shards import Index, build_index
from kdpipe.targets import Encoding, TargetsConfig
from kdpipe.verification import check_integrity
from kdpipe.views import BlockViews, ViewsConfig
from kdpipe.views.block import decode_sample
from tests.shards.making import encode, write_tar
from tests.tiny import CLASSES, SIZE, VIEWS, World, make_cache, make_world, teacher, tree


def live_logits(world: World, view) -> torch.Tensor:
    """What the teacher says of every sample, computed without any of the caching code."""
    from kdpipe.shards import BlockReader

    reader, model, rows = BlockReader(world.index), teacher(), []
    for row in range(len(world.index)):
        image = decode_sample(world.index, row, reader.image(row), VIEWS)
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        BlockViews(VIEWS, world.index.shard_of(row).name, [world.index.key(row)], view).render(0, image, out)
        x = (torch.from_numpy(out).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        rows.append(model.built.module(x))
    return torch.cat(rows)


def read_all(reader: CacheReader, world: World, view) -> dict[str, np.ndarray]:
    parts = [reader.read(s.name, view, 0, s.samples) for s in world.index.shards]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


@pytest.mark.parametrize("view", [0, 2, "center"])
def test_dense_float32_is_what_the_teacher_says(world, tmp_path, view):
    make_cache(world, tmp_path / "c", targets=TargetsConfig(kind="dense", dtype="float32"))
    stored = read_all(CacheReader(str(tmp_path / "c"), world.index, VIEWS), world, view)
    torch.testing.assert_close(torch.from_numpy(stored["logits"]), live_logits(world, view), rtol=1e-5, atol=1e-5)


def test_top_k_is_the_top_of_the_log_softmax(world, cache_path):
    stored = read_all(CacheReader(cache_path, world.index, VIEWS), world, 1)
    full = torch.log_softmax(live_logits(world, 1), dim=1)
    top = full.topk(4, dim=1)
    assert stored["index"].dtype == np.uint8
    assert np.array_equal(stored["index"], top.indices.numpy())
    np.testing.assert_allclose(stored["log_prob"], top.values.numpy(), rtol=1e-3, atol=1e-5)
    labels = torch.from_numpy(np.array(world.index.labels, np.int64))
    np.testing.assert_allclose(stored["label_log_prob"], full.gather(1, labels[:, None])[:, 0], rtol=1e-3, atol=1e-5)


def test_any_zarr_reader_reads_it(cache_path):
    group = zarr.open_group(cache_path, mode="r")
    array = group["segments/000-top4-float16-v0-3/index"]
    assert array.shape == (3, 3, 48, 4)
    assert array.metadata.dimension_names == ("view", "shard", "row", "k")
    assert (array[:, 0, :40] < CLASSES).all()
    assert (array[:, 0, 40:] == 255).all()
    assert group.attrs["kdpipe"]["identity"]["teacher"]["num_classes"] == CLASSES


@pytest.mark.parametrize("kind", ["topk", "dense"])
def test_our_reader_reads_what_zarr_reads(world, tmp_path, kind, monkeypatch):
    # Small chunks, so that a block of dense logits takes several.
    monkeypatch.setattr("kdpipe.cache.layout.CHUNK_BYTES", 64)
    cache = make_cache(world, tmp_path / "c", views=(0, 1), targets=TargetsConfig(kind=kind))
    group, reader = zarr.open_group(str(tmp_path / "c"), mode="r"), ArrayReader(cache)
    segment = cache.segments[0]
    for position, shard in enumerate(cache.shards):
        for start, stop in [(0, shard["samples"]), (3, 9), (16, 17), (15, 21)]:
            ours = reader.read(segment, shard["name"], 1, start, stop)
            for name, array in ours.items():
                theirs = group[segment.array(name)][1, position, start:stop]
                assert array.dtype == theirs.dtype
                assert np.array_equal(array, theirs)


def test_one_file_an_array_and_task(cache_path):
    chunks = [name for name in Store(cache_path).files("segments") if "/c/" in name]
    assert len(chunks) == 2 * 3 * 3  # segments x shards x fields


def test_repeating_does_nothing_and_more_views_append(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    before = tree(tmp_path / "c")
    make_cache(world, tmp_path / "c", views=(1, 0))
    assert tree(tmp_path / "c") == before
    cache = make_cache(world, tmp_path / "c", views=(0, 1, 2, 3, "center"))
    after = tree(tmp_path / "c")
    assert {name: after[name] for name in before} == before
    assert cache.views() == [0, 1, 2, 3, "center"]
    assert [s.name for s in cache.segments] == [
        "000-top4-float16-v0-2", "001-top4-float16-v2-4", "002-top4-float16-center"
    ]  # fmt: skip
    cache = make_cache(world, tmp_path / "c", views=(0,), targets=TargetsConfig(kind="dense"))
    assert cache.segments[-1].name == "003-dense-float16-v0-1"


def test_an_appended_view_equals_one_cached_at_once(world, tmp_path):
    make_cache(world, tmp_path / "a", views=(0, 1, 2))
    make_cache(world, tmp_path / "b", views=(2,))
    make_cache(world, tmp_path / "b", views=(0, 1, 2))
    a, b = (CacheReader(str(tmp_path / n), world.index, VIEWS) for n in "ab")
    for view in (0, 1, 2):
        one, two = read_all(a, world, view), read_all(b, world, view)
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_moving_the_shards_and_the_cache_changes_nothing(world, cache_path, tmp_path):
    shutil.copytree(world.folder / "shards", tmp_path / "elsewhere")
    shutil.copytree(cache_path, tmp_path / "moved.zarr")
    index = build_index(str(tmp_path / "elsewhere"), tmp_path / "index", block_size=16)
    reader = CacheReader(str(tmp_path / "moved.zarr"), index, VIEWS, num_classes=CLASSES)
    assert reader.views == [0, 1, 2, "center"]


def rewritten(world: World, folder: Path, change) -> World:
    """A copy of the world whose first shard's members went through `change(i, name, data)`."""
    import tarfile

    shutil.copytree(world.folder / "shards", folder / "shards")
    first = sorted((folder / "shards").iterdir())[0]
    with tarfile.open(first) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    write_tar(first, [change(i, name, data) for i, (name, data) in enumerate(members)])
    return World(folder, build_index(str(folder / "shards"), folder / "index", block_size=16))


def one_pixel(i, name, data):
    if i != 0:
        return name, data
    import io

    pixels = np.array(Image.open(io.BytesIO(data)))
    pixels[3, 3, 0] ^= 128
    return name, encode(pixels, "jpg")


def one_label(i, name, data):
    return (name, b"%d" % ((int(data) + 1) % CLASSES)) if i == 1 else (name, data)


def one_key(i, name, data):
    return ("other." + name.split(".", 1)[1], data) if i in (0, 1) else (name, data)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (one_pixel, r"shards.shard-0000.tar.content"),
        (one_label, r"shards.shard-0000.tar.labels"),
        (one_key, "content"),
    ],
)
def test_changed_shards_are_refused_by_name(world, cache_path, tmp_path, change, field):
    other = rewritten(world, tmp_path, change)
    with pytest.raises(IdentityError, match=rf"another .*{field}"):
        CacheReader(cache_path, other.index, VIEWS)
    with pytest.raises(IdentityError, match=rf"another .*{field}"):
        make_cache(other, cache_path)


def test_a_renamed_or_foreign_shard_is_refused(world, cache_path, tmp_path):
    shutil.copytree(world.folder / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "shard-0001.tar").rename(tmp_path / "shards" / "shard-0009.tar")
    index = build_index(str(tmp_path / "shards"), tmp_path / "index", block_size=16)
    with pytest.raises(IdentityError, match=r"shard-0009.tar"):
        CacheReader(cache_path, index, VIEWS)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"seed": 4}, "views.seed"), ({"scale": (0.2, 1)}, "views.scale"), ({"hflip": 0}, "views.hflip")],
)
def test_another_policy_is_refused_by_name(world, cache_path, settings, field):
    with pytest.raises(IdentityError, match=f"another {field}"):
        CacheReader(cache_path, world.index, VIEWS.model_copy(update=settings))


def test_another_class_count_or_block_size_is_refused(world, cache_path, tmp_path):
    with pytest.raises(IdentityError, match="another num_classes; found 10 now; allowed: 7 as cached"):
        CacheReader(cache_path, world.index, VIEWS, num_classes=10)
    index = build_index(str(world.folder / "shards"), tmp_path / "index", block_size=8)
    with pytest.raises(IdentityError, match="another block_size"):
        CacheReader(cache_path, index, VIEWS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model_kwargs": {"seed": 1}}, "teacher.model_kwargs.seed (and teacher.weights)"),
        ({"mean": (0.4, 0.5, 0.5)}, "teacher.mean[0]"),
        ({"num_classes": 9}, "teacher.num_classes"),
        ({"input_size": 20}, "render_size"),
    ],
)
def test_another_teacher_is_refused_by_name(world, cache_path, changes, field):
    with pytest.raises(IdentityError) as caught:
        make_cache(world, cache_path, **changes)
    assert field.split(" ")[0] in str(caught.value)


def test_other_numerics_may_not_go_on_with_a_segment(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0,))
    Store(tmp_path / "c").remove("commits/000-top4-float16-v0-1/shard-0001.tar.json")
    with pytest.raises(IdentityError, match=r"another batch_size.*found 16; allowed: 8"):
        make_cache(world, tmp_path / "c", views=(0,), batch_size=16)
    cache = make_cache(world, tmp_path / "c", views=(0,))
    assert cache.views() == [0]
    # A finished segment is finished, whatever made it; a new one may be made otherwise.
    make_cache(world, tmp_path / "c", views=(0, 1), batch_size=16)


def test_an_unfinished_cache_serves_the_finished_shards(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    make_cache(world, tmp_path / "c", views=(0, 1, 2))
    Store(tmp_path / "c").remove("commits/001-top4-float16-v2-3/shard-0002.tar.json")
    assert CacheReader(str(tmp_path / "c"), world.index, VIEWS).views == [0, 1]
    assert CacheReader(str(tmp_path / "c"), world.index.limit(73), VIEWS).views == [0, 1, 2]
    Store(tmp_path / "c").remove("commits/000-top4-float16-v0-2/shard-0002.tar.json")
    with pytest.raises(
        CacheError, match="all the shards; found top4-float16 of 2 shards; allowed: one encoding of all 3"
    ):
        CacheReader(str(tmp_path / "c"), world.index, VIEWS)


def test_a_limited_cache_serves_limited_training(world, tmp_path):
    short = World(world.folder, world.index.limit(50))
    make_cache(short, tmp_path / "c", views=(0,))
    reader = CacheReader(str(tmp_path / "c"), world.index.limit(45), VIEWS)
    assert len(reader.read("shard-0001.tar", 0, 0, 5)["index"]) == 5
    with pytest.raises(CacheError, match=r"made without 1 of the index's 3 shards; found shard-0002.tar"):
        CacheReader(str(tmp_path / "c"), world.index, VIEWS)
    with pytest.raises(CacheError, match="fewer samples of a shard than the index; found 10; allowed: at least 20"):
        CacheReader(str(tmp_path / "c"), world.index.limit(60), VIEWS)


def test_dense_is_asked_for_where_it_is_needed(world, cache_path, tmp_path):
    with pytest.raises(TargetsError, match=r"needs every class.*--targets dense"):
        CacheReader(cache_path, world.index, VIEWS, request=CacheRequest(dense=True))
    make_cache(world, tmp_path / "c", views=(0,))
    make_cache(world, tmp_path / "c", views=(0,), targets=TargetsConfig(kind="dense"))
    assert CacheReader(str(tmp_path / "c"), world.index, VIEWS).encoding.kind == "topk"
    assert (
        CacheReader(str(tmp_path / "c"), world.index, VIEWS, request=CacheRequest(dense=True)).encoding.kind == "dense"
    )


def test_a_cache_can_live_behind_fsspec(world):
    import fsspec

    url = "memory://kdpipe-test/c.zarr"
    cache = make_cache(world, url, views=(0,))
    assert cache.views() == [0]
    reader = CacheReader(url, world.index, VIEWS)
    assert (read_all(reader, world, 0)["index"] < CLASSES).all()
    fsspec.filesystem("memory").rm("/kdpipe-test", recursive=True)


def test_something_else_is_never_overwritten(world, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CacheError, match=r"not empty and not a cache; found thesis.tex"):
        make_cache(world, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_no_cache_and_a_later_format_are_said(tmp_path, cache_path):
    with pytest.raises(CacheError, match="no cache here"):
        Cache(Store(tmp_path))
    from kdpipe.cache.sealed import read_record, seal

    shutil.copytree(cache_path, tmp_path / "c")
    store = Store(tmp_path / "c")
    store.put("commits/store.json", seal({**read_record(store, "commits/store.json"), "format": 99}))
    with pytest.raises(CacheError, match="another format; found 99; allowed: 1"):
        Cache(store)


def test_identity_holds_no_path(cache_path, world):
    text = json.dumps(Cache(Store(cache_path)).identity)
    assert str(world.folder) not in text
    assert "/" not in text


@pytest.mark.parametrize(("classes", "dtype"), [(10, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
def test_the_index_dtype_holds_every_class(classes, dtype):
    assert Encoding.of(TargetsConfig(), classes).fields()[0].dtype == dtype


def test_unlabelled_samples_have_no_label_log_prob(tmp_path):
    half = make_world(tmp_path / "w", samples=(20,), unlabelled=0.5)
    make_cache(half, tmp_path / "c", views=(0,))
    stored = CacheReader(str(tmp_path / "c"), half.index, VIEWS).read("shard-0000.tar", 0, 0, 20)
    assert np.array_equal(np.isnan(stored["label_log_prob"]), np.asarray(half.index.labels) < 0)


def test_a_shard_without_any_label_can_be_cached(tmp_path):
    none = make_world(tmp_path / "w", samples=(20, 9), unlabelled=1.0)
    cache = make_cache(none, tmp_path / "c", views=(0,))
    stored = CacheReader(str(tmp_path / "c"), none.index, VIEWS).read("shard-0001.tar", 0, 0, 9)
    assert np.isnan(stored["label_log_prob"]).all()
    assert check_integrity(cache.store)[0] == []


def test_nobody_writes_beside_one_who_deletes(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpipe.cache.locks._PATIENCE", 0.3)
    store = Store(tmp_path / "c")
    with alone(store), pytest.raises(CacheError, match="another process is writing here"):
        make_cache(world, tmp_path / "c", views=(0,))
    assert not (tmp_path / "c").exists()
    make_cache(world, tmp_path / "c", views=(0,))


def test_arrays_that_nothing_vouches_for_are_swept(world, tmp_path):
    make_cache(world, tmp_path / "c", views=(0, 1))
    (tmp_path / "c" / "commits/000-top4-float16-v0-2/segment.json").unlink()
    (tmp_path / "c" / "commits/000-top4-float16-v0-2").rename(tmp_path / "gone")
    cache = make_cache(world, tmp_path / "c", views=(2,))
    assert [s.name for s in cache.segments] == ["000-top4-float16-v2-3"]
    assert check_integrity(cache.store)[0] == []


def test_many_dense_views_become_several_segments(world, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpipe.caching.segments._TASK_BYTES", 2 * 48 * 7 * 4)
    cache = make_cache(world, tmp_path / "c", views=range(5), targets=TargetsConfig(kind="dense", dtype="float32"))
    assert [s.views for s in cache.segments] == [(0, 1), (2, 3), (4,)]


def test_file_urls_and_unknown_protocols(world, tmp_path):
    make_cache(world, f"file://{tmp_path}/c", views=(0,))
    assert CacheReader(str(tmp_path / "c"), world.index).views == [0]
    with pytest.raises(CacheError, match="no way to such a URL"):
        Store("foo://bar/c")


def test_damaged_keys_are_noticed_before_they_draw(tmp_path, world, cache_path):
    shutil.copytree(world.index.path, tmp_path / "index")
    keys = tmp_path / "index" / "keys.npy"
    data = bytearray(keys.read_bytes())
    data[-3] ^= 1
    keys.write_bytes(data)
    with pytest.raises(IndexFileError, match=r"keys.npy"):
        make_cache(World(tmp_path, Index.open(tmp_path / "index")), tmp_path / "c")
    with pytest.raises(IndexFileError, match=r"keys.npy"):
        Loader(Index.open(tmp_path / "index"), VIEWS, SIZE, 8)


def test_settings_of_the_policy_are_all_in_the_identity(cache_path):
    assert set(ViewsConfig.model_fields) <= set(Cache(Store(cache_path)).identity["views"])


def test_a_put_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match="can't be written: No space left on device"):
        Store(tmp_path / "c").put("commits/head.json", b"{}")
    assert Store(tmp_path / "c").files() == []
