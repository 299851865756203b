"""Odd images: rendered as timm renders them, or refused in one line that names the sample."""

import io
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from kdpipe.errors import ShardError
from kdpipe.shards import BlockReader, build_index
from kdpipe.views import FIVE_CROP, ViewsConfig
from kdpipe.views.block import render_rows
from tests.tiny import RECIPE
from tests.views.test_render import photo


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    return encoded(Image.fromarray(photo(60, 90)), "JPEG", exif=exif, quality=95)


RGB = Image.fromarray(photo(60, 90))
FILES = {
    "exif": turned(),
    "grey": encoded(RGB.convert("L"), "JPEG"),
    "cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "palette": encoded(RGB.convert("P")),
    "palette-transparent": encoded(RGB.convert("P"), transparency=3),
    "alpha": encoded(RGB.convert("RGBA")),
    "grey-alpha": encoded(RGB.convert("LA")),
    "bilevel": encoded(RGB.convert("1")),
    "webp-alpha": encoded(RGB.convert("RGBA"), "WEBP", lossless=True),
    "pixel": encoded(Image.fromarray(photo(1, 1))),
    "row": encoded(Image.fromarray(photo(1, 40))),
    "column": encoded(Image.fromarray(photo(40, 1))),
    "sliver": encoded(Image.fromarray(photo(2, 3000))),
    "huge": encoded(Image.fromarray(photo(60, 90)).resize((6000, 4000), Image.Resampling.NEAREST), "JPEG"),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for name, data in FILES.items():
            for member, content in ((f"{name}.img", data), (f"{name}.cls", b"1")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return build_index(str(folder), folder / "index")


def rendered(index, config, views, size=32):
    with ThreadPoolExecutor(2) as pool:
        return render_rows(BlockReader(index), config, range(len(index)), views, size, pool)


def test_the_center_view_is_timms(index):
    ours = rendered(index, ViewsConfig(interpolation="bilinear"), ["center"]).pixels[0]
    transform = create_transform(32, interpolation="bilinear", crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    for i, (name, data) in enumerate(FILES.items()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data)).convert("RGB")
        theirs = (transform(image) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(theirs - ours[i]).max() <= 2, name


def test_exif_turns_the_image_where_asked(index):
    ignored, applied = (rendered(index, ViewsConfig(exif=e), ["center"]).pixels[0, 0] for e in ("ignore", "apply"))
    assert not np.array_equal(ignored, applied)
    # Orientation 6 is turned by 90 degrees clockwise; the centre crop is square.
    assert np.abs(np.rot90(ignored, -1).astype(int) - applied).mean() < 3


@pytest.mark.parametrize("mode", ["rrc", "rkrc", "rkrr"])
def test_every_policy_renders_them(index, mode):
    config = RECIPE.model_copy(update={"train_crop_mode": mode, "interpolation": "random"})
    found = rendered(index, config, [0, 1, 2, *FIVE_CROP])
    assert found.pixels.shape == (8, len(FILES), 32, 32, 3)
    assert [e is None for e in found.erased] == [False] * 3 + [True] * 5


def test_a_sliver_takes_no_more_memory_than_is_seen(monkeypatch, index):
    """Both ways of cutting a long strip show the same thing, to within what a shift of half a pixel changes."""
    import kdpipe.views.resize as resize

    config, at = ViewsConfig(interpolation="bilinear"), list(FILES).index("sliver")
    whole = rendered(index, config, ["center", "top-left", "bottom-right"]).pixels[:, at].astype(int)
    monkeypatch.setattr(resize, "_LARGEST", 1000)
    part = rendered(index, config, ["center", "top-left", "bottom-right"]).pixels[:, at].astype(int)
    assert np.abs(whole - part).max() <= 3


def test_a_bomb_is_refused_in_one_line(tmp_path):
    data = encoded(Image.new("1", (20_000, 20_000)))
    with tarfile.open(tmp_path / "bomb.tar", "w") as tar:
        info = tarfile.TarInfo("boom.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ShardError, match=r"bomb.tar.*boom.*decompression bomb") as e:
        build_index(str(tmp_path), tmp_path / "index")
    assert "\n" not in str(e.value)
