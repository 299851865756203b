"""Members made to cost much or to be taken for something else: one line each, cheaply, and the others are indexed."""

import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, ImageError, ShardError
from pipeline.shards import build_index, images
from pipeline.shards.document import MAX_CLASSES
from tests.shards.making import encode, photo, write_tar
from tests.stages.running import kdpipe, refused

JPEG = encode(photo(np.random.default_rng(0), 32, 32))
KEY = "a\x1b[31mred"


def jpeg_of(width: int, height: int) -> bytes:
    """A sound small JPEG whose header claims another size."""
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def png_of(width: int, height: int) -> bytes:
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


LABELS: dict[str, tuple[str, bytes, str]] = {
    "5,000 digits": (
        "cls",
        b"1" * 5000,
        "the label is not an integer; found 5000 bytes; allowed: an integer in at most",
    ),
    "megabytes": ("cls", b"1" * 3_000_000, "the label is not an integer; found 3000000 bytes"),
    "60 digits": ("cls", b"9" * 60, f"label out of range; found 9999999.*; allowed: 0 to {MAX_CLASSES - 1}"),
    "20 digits": ("cls", b"18446744073709551616", "label out of range; found 18446744073709551616"),
    "too many classes": ("cls", str(MAX_CLASSES).encode(), f"label out of range; found {MAX_CLASSES}"),
    "deep": ("json", b"[" * 200_000 + b"]" * 200_000, "member .json is not JSON; found nested too deeply"),
    "deep objects": ("json", b'{"label":' * 100_000, "member .json is not JSON"),
    "digits in JSON": ("json", b'{"label": ' + b"1" * 5000 + b"}", "member .json is not JSON"),
    "more digits than int64": ("json", b'{"label": ' + b"1" * 400 + b"}", r"label out of range; found 1{37}\.\.\.; "),
    "NaN": ("json", b'{"label": NaN}', "member .json is not JSON; found NaN is not JSON"),
    "infinity": ("json", b'{"label": 1e999}', "member .json is not JSON"),
    "large": ("json", b'{"label": 1, "x": "' + b"x" * 2**24 + b'"}', "member .json is too large; found"),
    "a long text": ("json", b'{"label": "' + b"x" * 10**6 + b'"}', "is not an integer; found 'xxxxx.*xx\\.\\.\\."),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_bounded(case: str, tmp_path: Path) -> None:
    suffix, data, message = LABELS[case]
    members = [("good.jpg", JPEG), ("good.cls", b"3"), ("bad.jpg", JPEG), (f"bad.{suffix}", data)]
    path, began = write_tar(tmp_path / "x.tar", members), time.monotonic()
    with pytest.raises(ShardError, match=message) as caught:
        build_index(path, tmp_path / "index")
    assert str(caught.value).startswith(f"{path}, sample 'bad', byte ")
    assert len(str(caught.value)) < 400
    index = build_index(path, tmp_path / "index", skip_bad=True)
    assert (index.keys(0, len(index)), index.labels.tolist()) == (["good"], [3])
    assert time.monotonic() - began < 5


def test_the_largest_label_is_taken(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("a.cls", str(MAX_CLASSES - 1).encode())])
    assert build_index(path, tmp_path / "index").labels.tolist() == [MAX_CLASSES - 1]


def test_class_counts_are_bounded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG)])
    with pytest.raises(
        ConfigError, match=f"num_classes: too many classes; found 2147483648; allowed: up to {MAX_CLASSES}"
    ):
        build_index(path, tmp_path / "index", num_classes=2**31)
    result = kdpipe("index", path, "--out", tmp_path / "index", "--num-classes", 2**31)
    assert result.code == 2
    assert f"1<=x<={MAX_CLASSES}" in result.err


BOMBS = {
    "a kilobyte of JPEG": (jpeg_of(13_300, 13_300), "the image is too large; found 13300 x 13300; allowed: 67108864"),
    "JPEG below the limit": (
        jpeg_of(8000, 8000),
        "its header claims more pixels than its bytes can hold; found 8000 x",
    ),
    "a long JPEG": (jpeg_of(60_000, 1000), "more pixels than its bytes can hold"),
    "PNG": (png_of(8000, 8000), "more pixels than its bytes can hold"),
    "a large PNG": (png_of(9000, 9000), "the image is too large"),
    "WebP": (encode(Image.new("RGB", (16_000, 5000)), "webp", method=0), "the image is too large; found 16000 x 5000"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = BOMBS[case]

    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    with monkeypatch.context() as patched:
        patched.setattr(images, "_by_pillow", decoded)
        patched.setattr(images.cv2, "imdecode", decoded)
        tracemalloc.start()
        for call in (images.check, images.decode, images.verify):
            with pytest.raises(ImageError, match=message):
                call(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
    path = write_tar(tmp_path / "x.tar", [("bad.img", data), ("good.jpg", JPEG)])
    with pytest.raises(ShardError, match=message):
        build_index(path, tmp_path / "index")
    assert build_index(path, tmp_path / "index", skip_bad=True).keys(0, 1) == ["good"]


def test_the_smallest_files_of_many_pixels_are_sound() -> None:
    """Uniform images are what encodings pack most: none is taken for a bomb."""
    for mode, colour in (("L", 0), ("L", 128), ("RGB", (128, 128, 128)), ("RGB", (255, 255, 255)), ("1", 0)):
        picture = Image.new(mode, (3000, 2000), colour)
        for kind, options in (("jpg", {"quality": 1, "optimize": True}), ("jpg", {"progressive": True}), ("png", {})):
            images.verify(encode(picture, kind, **options))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_data_end_early_is_refused_with_a_sound_end_too(mode: str) -> None:
    """Decoders fill it with grey and are content."""
    rng, passed, cuts = np.random.default_rng(0), 0, 0
    for _ in range(5):
        whole = encode(Image.fromarray(photo(rng, *rng.integers(40, 90, 2), 3)).convert(mode), "jpg")
        images.verify(whole)
        for cut in rng.integers(whole.index(b"\xff\xda") + 20, len(whole) - 60, 10).tolist():
            cuts += 1
            try:
                images.verify(whole[:cut] + b"\xff\xd9")
                passed += 1
            except ImageError as error:
                assert "truncated or corrupt" in str(error)
    # A cut inside the last block of pixels leaves nothing grey.
    assert passed < 0.1 * cuts


def test_control_characters_in_keys_are_escaped(tmp_path: Path) -> None:
    members = [(f"{KEY}.jpg", JPEG), (f"{KEY}.cls", b"x")]
    line = refused("index", write_tar(tmp_path / "x.tar", members), "--out", tmp_path / "index")
    assert "\\x1b[31mred" in line
    assert line.isprintable()
    sound = write_tar(tmp_path / "y.tar", members[:1])
    assert kdpipe("index", sound, "--out", tmp_path / "index").code == 0
    line = refused("view", tmp_path / "index", "--key", "none", "--out", tmp_path / "sheet.png")
    assert r"no such sample; found none; allowed: a\x1b[31mred" in line
    assert line.isprintable()
    assert kdpipe("view", tmp_path / "index", "--views", "0:1", "--out", tmp_path / "sheet.png").code == 0


@pytest.mark.parametrize("name", ["a\x1b.tar", "a\\b.tar"])
def test_shards_with_unusable_names_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / name, [("a.jpg", JPEG)])
    with pytest.raises(ShardError, match="a shard's name can't be used"):
        build_index(tmp_path / "set", tmp_path / "index")


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/secret.tar", "https://host/secret.tar", "a::b.tar", "~/b.tar"])
def test_an_info_json_names_no_file_elsewhere(name: str, tmp_path: Path) -> None:
    text = '{"splits": {"train": {"filenames": ["%s"], "shard_lengths": [1]}}}'
    (tmp_path / "_info.json").write_text(text % name)
    with pytest.raises(ShardError, match="_info.json names a shard elsewhere; found"):
        build_index(tmp_path, tmp_path / "index")
