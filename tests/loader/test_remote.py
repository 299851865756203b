"""Training from remote shards: the same batches as from local ones, and bounded memory."""

import tempfile
import tracemalloc
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

from kdpipe.errors import ShardError
from kdpipe.loader import Loader, LoaderConfig
from kdpipe.shards import Index, build_index
from kdpipe.views import ViewsConfig
from tests.shards.making import encode, write_tar
from tests.tiny import POLICIES, SIZE, World

# Noise as PNG: two shards of 12 blocks of 8 images of about 12 kB, all open at once in 8 streams of 3 blocks.
BLOCK, BLOCKS, PIXELS = 8, 24, 64
LOADER = LoaderConfig(streams=8, window=3)
PLAIN = ViewsConfig(seed=3, crop_pct=1.0)


def upload(index: Index, out: Path) -> Index:
    """The same shards in fsspec's memory, which forked workers have too."""
    where = f"/{uuid.uuid4().hex}"
    for shard in index.shards:
        fsspec.filesystem("memory").pipe_file(f"{where}/{shard.name}", Path(shard.url).read_bytes())
    return build_index(f"memory:/{where}/*.tar", out, block_size=index.block_size)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Index]:
    """The same noise local and remote."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for shard in range(2):
        images = rng.integers(0, 256, (BLOCK * BLOCKS // 2, PIXELS, PIXELS, 3), np.uint8)
        write_tar(folder / f"n-{shard}.tar", [(f"{shard}{i:03d}.png", encode(x, "png")) for i, x in enumerate(images)])
    local = build_index(folder, folder / "index", block_size=BLOCK)
    return local, upload(local, folder / "remote")


def loader(index: Index, config: ViewsConfig = PLAIN, workers: int = 0) -> Loader:
    return Loader(index, config, SIZE, 16, loader=LOADER.model_copy(update={"workers": workers}))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", list(POLICIES))
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_remote_shards_give_the_same_batches(world: World, tmp_path: Path, name: str, workers: int) -> None:
    local, remote = (
        loader(world.index, POLICIES[name]),
        loader(upload(world.index, tmp_path / "r"), POLICIES[name], workers),
    )
    for epoch in range(2):  # the second finds the slots used
        for ours, theirs in zip(local.epoch(epoch), remote.epoch(epoch), strict=True):
            assert (ours.images == theirs.images).all()
            assert (ours.rows == theirs.rows).all()
            assert (ours.labels == theirs.labels).all()
    remote.close()


def test_memory_is_that_of_one_block_and_not_of_all_that_are_open(noise: tuple[Index, Index]) -> None:
    block = noise[0].bytes // BLOCKS
    assert loader(noise[0]).streams == 8

    def peak(index: Index) -> int:
        batches = loader(index)
        for _ in batches.epoch(0):  # whatever is imported or cached once
            pass
        tracemalloc.start()
        for _ in batches.epoch(1):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        batches.close()
        return found

    local, remote = map(peak, noise)
    # A block as it is fetched and once more inside fsspec, out of 24.
    assert remote - local < 4 * block


def test_a_block_that_changed_between_epochs_is_refused(noise: tuple[Index, Index], tmp_path: Path) -> None:
    remote = upload(noise[0], tmp_path / "index")
    batches = loader(remote)
    assert sum(len(batch) for batch in batches.epoch(0)) == len(remote)
    fs, inner = fsspec.core.url_to_fs(remote.shards[1].url)
    data = bytearray(fs.cat_file(inner))
    data[int(remote.image_start[-1]) + 100] ^= 1
    fs.pipe_file(inner, bytes(data))
    with pytest.raises(ShardError, match="changed since it was indexed"):
        list(batches.epoch(1))
    batches.close()


def test_a_full_disk_is_reported(noise: tuple[Index, Index], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(ShardError, match=r"No space left on device.*TMPDIR") as error:
        next(loader(noise[1]).epoch(0))
    assert tempfile.gettempdir() in str(error.value)
