"""Members made to cost much or to be taken for something else: one line each, cheaply, and the others are indexed."""

import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.errors import ConfigError, ImageError, ShardError
from kdpipe.shards import build_index, images
from kdpipe.shards.classes import MAX_CLASSES
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
            except ImageError:
                continue
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
    with pytest.raises(ShardError, match=r"the manifest names a shard elsewhere; found"):
        build_index(tmp_path, tmp_path / "index")


def _header(name: bytes, size: bytes, kind: bytes) -> bytes:
    header = bytearray(512)
    header[: len(name)], header[100:108], header[124:136] = name, b"0000644\0", size.ljust(12, b"\0")
    header[156:157], header[257:265] = kind, b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _pax(record: bytes) -> bytes:
    line = b"%d %s\n" % (len(record) + 4, record)
    return _header(b"pax", b"%011o" % len(line), b"x") + line.ljust(512, b"\0")


FILE = _header(b"b.jpg", b"%011o" % 512, b"0") + bytes(512)
LOOPS = {
    "negative size": _pax(b"size=-9999") + FILE,
    "size beyond": _pax(b"size=99999") + FILE,
    "negative base 256": _header(b"b.jpg", b"\xff" * 12, b"0"),
    "long names": _header(b"long", b"%011o" % 0, b"L") * 3000,
    "pax headers": _header(b"pax", b"%011o" % 0, b"x") * 3000,
    "sparse map": _pax(b"GNU.sparse.map=1,x,3") + FILE,
}


@pytest.mark.parametrize("case", LOOPS)
def test_headers_made_to_loop_or_recurse_are_damage(case: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("c.jpg", JPEG)])
    size = 2 * (512 + -(-len(JPEG) // 512) * 512)
    path.write_bytes(path.read_bytes()[:size] + LOOPS[case] + bytes(1024))
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"x.tar, byte \d+: "):
        build_index(path, tmp_path / "index")
    assert time.monotonic() - began < 5
    index = build_index(path, tmp_path / "index", skip_bad=True)
    assert index.keys(0, len(index)) == ["a", "c"]


def test_damaged_tars_are_refused_or_read(tmp_path: Path) -> None:
    """What isn't refused has sound images alone: every sample's bytes are decoded and digested."""
    rng, refused = np.random.default_rng(0), 0
    pairs = [(f"{i}.{suffix}", data) for i in range(3) for suffix, data in (("jpg", JPEG), ("cls", b"1"))]
    path = write_tar(tmp_path / "x.tar", pairs)
    data = path.read_bytes()
    used = len(data.rstrip(b"\0"))
    for case in range(200):
        changed = bytearray(data)
        for at in rng.integers(0, used, 3).tolist():
            changed[at] = (
                int(rng.integers(0, 256)) if rng.random() < 0.5 else changed[at] ^ 1 << int(rng.integers(0, 8))
            )
        path.write_bytes(changed)
        try:
            build_index(path, tmp_path / "index", skip_bad=bool(case % 2), workers=1, overwrite=True)
        except ShardError:
            refused += 1
    assert refused > 25
