"""The sheet shows exactly what a model would see, and says what was drawn for it."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.shards import BlockReader, Index, build_index
from kdpipe.views import View, ViewsConfig
from kdpipe.views.block import Rendered, block_views, decode_sample, paired_index, render_rows
from kdpipe.views.erasing import noise_values
from kdpipe_stages.view_sheet import wrapped
from tests.shards.making import encode, photo, write_tar
from tests.stages.running import kdpipe, refused
from tests.tiny import SIZE, VIEWS

RECIPE = {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0}
LARGE = 160  # views of this size are shown pixel by pixel


def sets(**settings: object) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"views.{name}={value}")]


def rendered(index: Index, config: ViewsConfig, row: int, views: list[View], size: int) -> Rendered:
    with ThreadPoolExecutor(1) as pool:
        return render_rows(BlockReader(paired_index(index, config)), config, range(row, row + 1), views, size, pool)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def shows(sheet: np.ndarray, tile: np.ndarray) -> bool:
    """Whether a tile is somewhere on a sheet, to the pixel."""
    h, w = tile.shape[:2]
    starts = (sheet[: len(sheet) - h + 1, : sheet.shape[1] - w + 1] == tile[0, 0]).all(axis=2)
    return any(np.array_equal(sheet[y : y + h, x : x + w], tile) for y, x in np.argwhere(starts))


def enlarged(tile: np.ndarray, factor: int) -> np.ndarray:
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


def test_tiles_are_the_views_to_the_pixel(world, tmp_path):
    key, views = world.index.key(20), [0, 1, 2, 3, "center"]
    command = ["view", world.index_path, "--key", key, "--views", "0:4,center", "--input-size", LARGE, *sets(**RECIPE)]
    result = kdpipe(*command, "--out", tmp_path / "s.png")
    assert result.code == 0, result.err
    assert result.out == f"{tmp_path / 's.png'}: 1 samples x 5 views at {LARGE} pixels\n"
    sheet = picture(tmp_path / "s.png")
    config = ViewsConfig(**RECIPE)
    pixels = rendered(world.index, config, 20, views, LARGE).pixels
    assert all(shows(sheet, tile) for tile in pixels[:, 0])
    other = rendered(world.index, config, 21, views, LARGE).pixels
    assert not any(shows(sheet, tile) for tile in other[:, 0])


def test_a_mixed_view_stands_with_its_partners_own(world, tmp_path):
    command = ["view", world.index_path, "--views", "0:3", "--input-size", LARGE, *sets(**RECIPE), "--json"]
    draws = json.loads(kdpipe(*command, "--out", tmp_path / "s.png").out)
    sheet, config = picture(tmp_path / "s.png"), ViewsConfig(**RECIPE)
    for view, said in enumerate(draws):
        drawing = block_views(world.index, config, 0, view)
        partner = drawing.partner(0)
        assert said["draws"]["partner"] == world.index.key(partner)
        own = np.empty((LARGE, LARGE, 3), np.uint8)
        data = BlockReader(world.index).image(partner)
        drawing.render(partner, decode_sample(world.index, partner, data, config), own)
        small = Image.fromarray(own).resize((LARGE // 2, LARGE // 2))
        assert shows(sheet, np.asarray(small))


def test_json_says_the_draws(world, tmp_path):
    settings = {"auto_augment": "rand-m9-n3", "re_prob": 0.9, "vflip": 0.5}
    keys = [word for row in (5, 50) for word in ("--key", world.index.key(row))]
    command = ["view", world.index_path, *keys, "--views", "1,0,center", "--input-size", 32, *sets(**settings)]
    found = json.loads(kdpipe(*command, "--json", "--out", tmp_path / "s.png").out)
    config = ViewsConfig(**settings)
    expected = []
    for row in (5, 50):
        block = world.index.block_of(row)
        at = row - world.index.rows(block).start
        for view in (1, 0, "center"):
            draws = block_views(world.index, config, block, view).draws(at, 24, 24, 32)
            name = world.index.shard_of(row).name
            expected.append({"shard": name, "key": world.index.key(row), "view": view, "draws": draws})
    assert found == json.loads(json.dumps(expected))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erased_boxes_are_grey_or_noise_and_small_views_enlarged(world, tmp_path, mode):
    settings = {"re_prob": 1.0, "re_mode": mode, "re_count": 2}
    command = ["view", world.index_path, "--views", "0:2", "--input-size", 32, *sets(**settings)]
    assert kdpipe(*command, "--out", tmp_path / "s.png").code == 0
    views = rendered(world.index, ViewsConfig(**settings), 0, [0, 1], 32)
    levels = np.clip(np.rint(128 + 50 * noise_values()), 0, 255) if mode != "const" else np.full(256, 128)
    for pixels, erased in zip(views.pixels[:, 0], views.erased, strict=True):
        inside = np.zeros((32, 32), bool)
        for top, left, h, w in erased.boxes[0]:
            inside[top : top + h, left : left + w] = True
        assert inside.any()
        seen = np.where(inside[..., None], levels.astype(np.uint8)[pixels], pixels)
        assert shows(picture(tmp_path / "s.png"), enlarged(seen, 5))


def test_the_crops_are_outlined_on_the_image(world, tmp_path):
    assert kdpipe("view", world.index_path, "--views", "0:2", "--out", tmp_path / "s.png").code == 0
    assert kdpipe("view", world.index_path, "--views", "center", "--out", tmp_path / "c.png").code == 0
    first, plain = (picture(tmp_path / name)[8:232, 8:232] for name in ("s.png", "c.png"))
    red, blue = ((first == colour).all(axis=2) for colour in ((0xD6, 0x27, 0x28), (0x1F, 0x77, 0xB4)))
    assert red.any()
    assert blue.any()
    assert np.array_equal(first[~(red | blue)], plain[~(red | blue)])


class TestWhichPolicy:
    def test_of_a_cache(self, world, cache_path, tmp_path):
        result = kdpipe("view", world.index_path, "--cache", cache_path, "--views", "2:4", "--out", tmp_path / "s.png")
        assert result.code == 0, result.err
        assert "not in the cache, or not of all shards: views 3:4" in result.err
        pixels = rendered(world.index, VIEWS, 0, [2, 3], SIZE).pixels
        assert all(shows(picture(tmp_path / "s.png"), enlarged(tile, 10)) for tile in pixels[:, 0])

    def test_two_are_refused(self, world, cache_path, tmp_path):
        command = ["view", world.index_path, "--cache", cache_path, "--out", tmp_path / "s.png"]
        assert "Leave out --config and --set" in refused(*command, *sets(seed=1))
        assert not (tmp_path / "s.png").exists()

    def test_targets_are_mixed_later(self, world, tmp_path):
        command = ["view", world.index_path, *sets(**RECIPE, mix="targets"), "--views", "0:4", "--json"]
        draws = json.loads(kdpipe(*command, "--out", tmp_path / "s.png").out)
        assert [d["draws"]["partner"] for d in draws] == [None] * 4


@pytest.fixture(scope="module")
def baselines(tmp_path_factory) -> Path:
    """Two shards with the same keys, one image of them a single pixel, one a line."""
    folder = tmp_path_factory.mktemp("baselines")
    for n, shape in enumerate([(1, 1), (1, 3000)]):
        images = {"a": (24, 30), "b": shape, "a-key-" + "of-many-letters-" * 5: (9, 9), f"für-{n}": (9, 9)}
        rng = np.random.default_rng(n)
        write_tar(folder / f"t-{n}.tar", [(f"{k}.png", encode(photo(rng, *s), "png")) for k, s in images.items()])
    build_index(str(folder), folder / "index")
    return folder / "index"


class TestWhichSample:
    def view(self, index: Path, out: Path, *keys: str) -> list[tuple[str, str]]:
        words = [word for key in keys for word in ("--key", key)]
        found = kdpipe("view", index, "--out", out, "--views", "0", "--json", *words)
        assert found.code == 0, found.err
        return [(said["shard"], said["key"]) for said in json.loads(found.out)]

    def test_the_first_or_those_named(self, baselines, tmp_path):
        assert self.view(baselines, tmp_path / "s.png") == [("t-0.tar", "a")]
        named = ["t-1.tar:b", "t-0.tar:b", "für-1", "t-1.tar:a"]
        samples = [("t-1.tar", "b"), ("t-0.tar", "b"), ("t-1.tar", "für-1"), ("t-1.tar", "a")]
        assert self.view(baselines, tmp_path / "s.png", *named) == samples

    def test_a_key_of_two_shards(self, baselines, tmp_path):
        line = refused("view", baselines, "--key", "a", "--out", tmp_path / "s.png")
        assert "several shards have this key; found a; allowed: t-0.tar:a, t-1.tar:a" in line

    def test_no_such_key(self, baselines, tmp_path):
        for name in ("c", "t-2.tar:a", "t-0.tar:für-1"):
            line = refused("view", baselines, "--key", name, "--out", tmp_path / "s.png")
            assert f"no such sample; found {name}; allowed: a, b, " in line
        assert not (tmp_path / "s.png").exists()

    def test_long_names_take_several_lines(self, baselines, tmp_path):
        long = "a-key-" + "of-many-letters-" * 5
        assert self.view(baselines, tmp_path / "s.png", f"t-0.tar:{long}")
        lines = wrapped(f"mixup with {long}, lam 0.5", LARGE)
        assert "".join(lines).replace(" ", "") == f"mixupwith{long},lam0.5"
        assert len(lines) > 2
        assert wrapped("für", LARGE) == ["f?r"]


class TestNothingHalfWritten:
    def test_a_full_disk(self, world, tmp_path, monkeypatch):
        def fails(self: Image.Image, path: Path, *_: object) -> None:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Image.Image, "save", fails)
        (tmp_path / "s.png").write_text("precious")
        assert "No space left" in refused("view", world.index_path, "--out", tmp_path / "s.png")
        assert [p.name for p in tmp_path.iterdir()] == ["s.png"]
        assert (tmp_path / "s.png").read_text() == "precious"

    def test_a_file_where_a_folder_should_be(self, world, tmp_path):
        (tmp_path / "file").write_text("precious")
        assert "can't be written" in refused("view", world.index_path, "--out", tmp_path / "file" / "s.png")
        assert "can't be written" in refused("view", world.index_path, "--out", tmp_path)
        assert (tmp_path / "file").read_text() == "precious"

    def test_mistakes_that_others_make_too(self, world, tmp_path):
        out = tmp_path / "s.png"
        assert "no.index" in refused("view", tmp_path / "no.index", "--out", out)
        assert "invalid --views" in refused("view", world.index_path, "--views", "3:1", "--out", out)
        assert "no cache here" in refused("view", world.index_path, "--cache", tmp_path / "no.zarr", "--out", out)
        assert not out.exists()
