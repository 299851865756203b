"""Any single bit flipped anywhere in a cache is found, by verify and by whoever reads it."""

import random
import shutil
from pathlib import Path

import pytest

from kdpipe.cache import CacheReader, Store, read_canaries
from kdpipe.errors import CacheError, CorruptionError
from kdpipe.verification import check_integrity
from tests.tiny import VIEWS, World, tree

FLIPS = 200


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def read_everything(url: str, world: World) -> None:
    """All that a training run reads of a cache."""
    reader = CacheReader(url, world.index, VIEWS)
    read_canaries(reader.cache)
    for shard in world.index.shards:
        for start in range(0, shard.samples, 16):
            for view in reader.views:
                reader.read(shard.name, view, start, min(start + 16, shard.samples))


def refuses(url: str, world: World) -> bool:
    try:
        read_everything(url, world)
    except CacheError:
        return True
    return False


def test_200_single_bit_flips_are_all_found(world, cache_path, tmp_path):
    out = tmp_path / "c.zarr"
    shutil.copytree(cache_path, out)
    read_everything(str(out), world)
    assert check_integrity(Store(out))[0] == []
    rng = random.Random(0)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    for i in range(FLIPS):
        # Every file in turn, however small it is beside the others.
        path = files[i % len(files)]
        intact = path.read_bytes()
        bit = rng.randrange(8 * len(intact))
        flip(path, bit)
        where = f"bit {bit} of {path.relative_to(out)}"
        problems, _ = check_integrity(Store(out))
        assert problems, f"verify missed {where}"
        if path.name != "provenance.json":  # training doesn't read it
            assert refuses(str(out), world), f"training missed {where}"
        path.write_bytes(intact)
    assert tree(out, ignore=()) == tree(Path(cache_path), ignore=())


def test_a_damaged_chunk_is_named_with_its_rows(world, cache_path, tmp_path):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/segments/000-top4-float16-v0-3/log_prob/c/0/1/0/0"
    flip(chunk, 8 * 20)
    problems, _ = check_integrity(Store(tmp_path / "c.zarr"))
    assert {p["where"] for p in problems} == {str(chunk.relative_to(tmp_path / "c.zarr"))}
    assert any("rows 0:16 can't be read" in p["what"] for p in problems)
    reader = CacheReader(str(tmp_path / "c.zarr"), world.index, VIEWS)
    with pytest.raises(
        CorruptionError, match=r"log_prob/c/0/1/0/0: a chunk .* checksum is wrong; found view 0 rows 0:16"
    ):
        reader.read("shard-0001.tar", 0, 0, 16)


@pytest.mark.parametrize("cut", [1, 1000, None])
def test_a_missing_or_short_file_is_not_read_as_fill(world, cache_path, tmp_path, cut):
    shutil.copytree(cache_path, tmp_path / "c.zarr")
    chunk = tmp_path / "c.zarr/segments/000-top4-float16-v0-3/index/c/0/2/0/0"
    if cut is None:
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-cut])
    reader = CacheReader(str(tmp_path / "c.zarr"), world.index, VIEWS)
    with pytest.raises(CorruptionError, match="its size is wrong"):
        reader.read("shard-0002.tar", 0, 0, 16)
    assert check_integrity(Store(tmp_path / "c.zarr"))[0][0]["where"].endswith("index/c/0/2/0/0")


def test_unexpected_and_missing_files_are_listed(cache_path, tmp_path):
    out = tmp_path / "c.zarr"
    shutil.copytree(cache_path, out)
    (out / "segments" / "notes.txt").write_text("hello")
    problems, _ = check_integrity(Store(out))
    assert problems == [{"where": "segments/notes.txt", "what": problems[0]["what"]}]
    assert problems[0]["what"].startswith("unexpected")
    (out / "segments" / "notes.txt").unlink()
    (out / "canaries" / "labels.json").unlink()
    assert [p["where"] for p in check_integrity(Store(out))[0]] == ["canaries/labels.json"]


def test_a_record_moved_to_another_shard_is_found(cache_path, tmp_path):
    out = tmp_path / "c.zarr"
    shutil.copytree(cache_path, out)
    folder = out / "commits" / "000-top4-float16-v0-3"
    shutil.copy(folder / "shard-0000.tar.json", folder / "shard-0001.tar.json")
    assert any("a task that this cache does not have" in p["what"] for p in check_integrity(Store(out))[0])
