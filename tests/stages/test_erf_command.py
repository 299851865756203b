"""`kdpipe erf`: the same numbers as the library's, a picture for each model, mistakes in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from kdpipe.erf import ReceptiveField, log_scale, squares
from kdpipe.models import METADATA_KEY
from kdpipe.views import Normalize, ViewsConfig
from kdpipe_stages.erf import center_views
from kdpipe_stages.erf_sheet import coloured, sheet
from tests.stages.running import kdpipe, refused

MODEL, SIZE, IMAGES = "test_convnext", 64, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def module(classes: int = 7) -> torch.nn.Module:
    torch.manual_seed(11)
    return timm.create_model(MODEL, num_classes=classes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as train-student leaves them: they say what they are of."""
    path = tmp_path_factory.mktemp("lr=0.1") / "best.safetensors"
    said = {"model": MODEL, "num_classes": 7, "input_size": 16, "mean": MEAN, "std": STD}
    save_file(module().state_dict(), path, {METADATA_KEY: json.dumps(said)})
    return path


def command(world, tmp_path, *models: object) -> list[object]:
    small = ("--input-size", SIZE, "--limit", IMAGES, "--set", "teacher.threads=1")
    return ["erf", "--index", world.index_path, *small, "--out", tmp_path / "erf.png", *models]


def as_json(*words: object) -> dict:
    result = kdpipe(*words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_the_numbers_are_the_librarys(world, checkpoint, tmp_path):
    found = as_json(*command(world, tmp_path, checkpoint))
    assert (found["out"], found["input_size"]) == (str(tmp_path / "erf.png"), SIZE)
    field, normalize = ReceptiveField(module(), "it"), Normalize(MEAN, STD)
    for pixels in center_views(world.index.limit(IMAGES), ViewsConfig(crop_pct=1.0), SIZE):
        field.add(normalize(torch.from_numpy(pixels[None])))
    (said,) = found["models"]
    for measure, heat in {"log": log_scale(field.heat()), "gradient": field.heat()}.items():
        assert list(said[measure]) == ["20%", "30%", "50%", "99%"]
        assert [tuple(s.values()) for s in said[measure].values()] == squares(heat)
    assert (said["model"], said["weights"], said["images"], said["skipped"]) == (MODEL, str(checkpoint), IMAGES, 0)


def test_several_models_side_by_side(world, checkpoint, tmp_path):
    words = command(world, tmp_path, MODEL, checkpoint, f"{MODEL}={checkpoint}", "test_resnet")
    result = kdpipe(*words)
    assert result.code == 0, result.err
    assert [line.split(":")[0] for line in result.err.splitlines()] == [MODEL, "test_resnet"]
    assert "random weights" in result.err
    lines = result.out.splitlines()
    assert lines[0].startswith(f"sides in pixels of {SIZE}")
    assert lines[-1] == str(tmp_path / "erf.png")
    for name in (f"{MODEL}, random weights", f"{MODEL}, {checkpoint}", "test_resnet, random weights"):
        rows = [line for line in lines if line.startswith(name)]
        assert rows
        assert all(row.count(" %") == 4 for row in rows)
    with Image.open(tmp_path / "erf.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 4 * 320 + 5 * 8
        pixels = np.array(picture)
    # The same weights under two names: the same map, but for what is written under it.
    tiles = [pixels[8:328, 8 + 328 * n : 328 + 328 * n] for n in range(4)]
    assert np.array_equal(tiles[1], tiles[2])
    assert not np.array_equal(tiles[0], tiles[1])


def test_the_same_every_time_in_any_order(world, checkpoint, tmp_path):
    one = as_json(*command(world, tmp_path, MODEL, checkpoint))
    picture = (tmp_path / "erf.png").read_bytes()
    assert as_json(*command(world, tmp_path, MODEL, checkpoint)) == one
    assert (tmp_path / "erf.png").read_bytes() == picture
    other = as_json(*command(world, tmp_path, "test_resnet", checkpoint, MODEL))
    assert other["models"][2:0:-1] == one["models"]


def test_whole_images_unless_a_crop_is_asked_for(world):
    (whole,) = center_views(world.index.limit(1), ViewsConfig(crop_pct=1.0), 48)
    (part,) = center_views(world.index.limit(1), ViewsConfig(crop_pct=0.5), 48)
    # Half the side, twice as large.
    small = np.asarray(Image.fromarray(whole[12:36, 12:36]).resize((48, 48), Image.Resampling.BICUBIC))
    assert np.abs(small.astype(int) - part)[4:-4, 4:-4].mean() < 6


def test_crop_and_params(world, checkpoint, tmp_path):
    words = command(world, tmp_path, checkpoint)
    plain = as_json(*words)
    assert as_json(*words, "--set", "views.crop_pct=1.0") == plain
    as_json(*words, "--set", "views.crop_pct=0.5")
    one = (tmp_path / "erf.png").read_bytes()
    as_json(*words)
    assert (tmp_path / "erf.png").read_bytes() != one


def test_the_picture_shows_map_and_squares():
    heat = np.zeros((32, 32))
    heat[15:18, 15:18] = 1.0
    drawn = np.array(sheet([(heat, "name", "weights")]))[8:328, 8:328]
    # Ten pixels of the sheet are one of the map; both squares are the nine pixels' frame.
    bright = drawn.sum(axis=2) > 300
    ys, xs = np.nonzero(bright)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (150, 179, 150, 179)
    assert len({tuple(p) for p in drawn[160:170, 160:170].reshape(-1, 3)}) == 1
    ramp = np.asarray(coloured(np.linspace(0, 1, 320)[None].repeat(320, axis=0))).astype(int)[0] @ [299, 587, 114]
    assert (np.diff(ramp) >= 0).all()
    assert coloured(heat.repeat(20, axis=0).repeat(20, axis=1)).size == (320, 320)


class TestMistakes:
    @pytest.fixture
    def words(self, world, tmp_path):
        return lambda *more: command(world, tmp_path, *more)

    def test_models(self, words, checkpoint, tmp_path):
        assert "unknown model; found rezznet" in refused(*words("rezznet"))
        assert "weights not found" in refused(*words(tmp_path / "no.safetensors"))
        assert "weights not found" in refused(*words(f"{MODEL}={tmp_path / 'no'}"))
        assert "not a model; found =x; allowed: FILE, NAME=FILE or NAME" in refused(*words("=x"))
        assert "weights of another model" in refused(*words(f"test_resnet={checkpoint}"))
        assert not (tmp_path / "erf.png").exists()

    def test_a_file_that_does_not_say_what_it_is_of(self, words, tmp_path):
        torch.save(module(5).state_dict(), tmp_path / "w.pth")
        line = refused(*words(tmp_path / "w.pth"))
        assert line.endswith(f"the header of these weights names no model. Write NAME={tmp_path / 'w.pth'}")
        named = f"{MODEL}={tmp_path / 'w.pth'}"
        assert as_json(*words(named)) == as_json(*words(named, "--num-classes", 5))

    def test_what_has_no_map(self, words, tmp_path):
        # Found at the first image, though the model before it could go on for hours.
        assert "forward_features gives no map" in refused(*words(MODEL, "test_vit", "--input-size", 160))
        factory = refused(*words("tests.tiny:network", "--num-classes", 7))
        assert "tests.tiny:network: the model has no forward_features" in factory
        assert "gradient can't be computed" in refused(*words("test_resnet", MODEL, "--input-size", 16))
        assert not (tmp_path / "erf.png").exists()

    def test_options(self, words, world, checkpoint, tmp_path):
        assert "every model has weights of its own" in refused(*words(checkpoint, "--pretrained"))
        assert "an impossible limit" in refused(*words(MODEL, "--limit", 0))
        assert "no.index" in refused("erf", MODEL, "--index", tmp_path / "no.index", "--out", tmp_path / "erf.png")
        assert kdpipe("erf", "--index", world.index_path, "--out", tmp_path / "erf.png").code == 2
        assert not (tmp_path / "erf.png").exists()

    def test_where_the_picture_can_not_be(self, world, tmp_path):
        (tmp_path / "file").write_text("precious")
        for out in (tmp_path, tmp_path / "file" / "erf.png"):
            # Said before the model is looked at.
            line = refused("erf", "rezznet", "--index", world.index_path, "--out", out)
            assert "the picture can't be written there" in line
        assert (tmp_path / "file").read_text() == "precious"
