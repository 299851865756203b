"""Decoding: Pillow's pixels, Pillow's warnings kept in, every bad image told."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from kdpipe.errors import ImageError
from kdpipe.shards.images import check, decode, identify
from tests.shards.making import encode, photo

PHOTO = photo(np.random.default_rng(0), 40, 56, 3)
RGB = Image.fromarray(PHOTO)


def _as(mode: str) -> Image.Image:
    return RGB.convert(mode)


def _with_transparency() -> bytes:
    buffer = io.BytesIO()
    _as("P").save(buffer, "PNG", transparency=bytes(range(256)))
    return buffer.getvalue()


CASES = {
    "jpeg": (encode(PHOTO, "jpg"), "jpeg"),
    "jpeg progressive": (encode(PHOTO, "jpg", progressive=True), "jpeg"),
    "jpeg 4:4:4": (encode(PHOTO, "jpg", subsampling=0), "jpeg"),
    "jpeg 4:2:2": (encode(PHOTO[:37, :53], "jpg", subsampling=1), "jpeg"),
    "jpeg 4:2:0, odd": (encode(PHOTO[:37, :53], "jpg", subsampling=2, quality=70), "jpeg"),
    "jpeg one pixel": (encode(PHOTO[:1, :1], "jpg"), "jpeg"),
    "jpeg stored as RGB": (encode(PHOTO, "jpg", keep_rgb=True), "jpeg"),
    "jpeg restarts, optimised": (encode(PHOTO, "jpg", restart_marker_blocks=3, optimize=True), "jpeg"),
    "jpeg profile": (encode(PHOTO, "jpg", icc_profile=b"not one" * 40, comment=b"hello"), "jpeg"),
    "jpeg grey": (encode(_as("L"), "jpg"), "jpeg"),
    "jpeg cmyk": (encode(_as("CMYK"), "jpg"), "jpeg"),
    "png": (encode(PHOTO, "png"), "png"),
    "png grey": (encode(_as("L"), "png"), "png"),
    "png bits": (encode(_as("1"), "png"), "png"),
    "png alpha": (encode(_as("RGBA"), "png"), "png"),
    "png grey alpha": (encode(_as("LA"), "png"), "png"),
    "png palette": (encode(_as("P"), "png"), "png"),
    "png palette, transparent": (_with_transparency(), "png"),
    "webp lossless": (encode(PHOTO, "webp"), "webp"),
    "webp lossy": (encode(PHOTO, "webp", lossless=False, quality=80), "webp"),
    "webp alpha": (encode(_as("RGBA"), "webp"), "webp"),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_pillows_convert(name: str) -> None:
    data, kind = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert identify(data) == kind
    for form in (data, memoryview(data), bytearray(data)):
        check(form)
        pixels = decode(form)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", CASES)
def test_every_cut_is_an_image_error_or_the_whole_image(name: str) -> None:
    data, _ = CASES[name]
    whole = decode(data)
    for cut in range(0, len(data), max(1, len(data) // 60)):
        try:
            pixels = decode(data[:cut])
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, whole)  # only what follows the pixels was cut


def test_messages_say_what() -> None:
    jpeg = CASES["jpeg"][0]
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode(jpeg[: len(jpeg) // 2])
    with pytest.raises(ImageError, match="header can't be read"):
        decode(jpeg[:20])
    with pytest.raises(ImageError, match="not a JPEG, PNG or WebP image; found first bytes 42 4d"):
        decode(b"BM" + bytes(60))
    with pytest.raises(ImageError, match="found first bytes nothing"):
        decode(b"")


def test_sixteen_bits_are_refused_in_every_png_mode() -> None:
    grey = encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900), "png")
    for data in (grey, _png(depth=16, colour=2, row=bytes(1 + 4 * 6))):
        for call in (check, decode):
            with pytest.raises(ImageError, match="more than 8 bits a channel; found 16"):
                call(data)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = _png(depth=8, colour=2, row=bytes(10), size=(30_000, 30_000))
    for call in (check, decode):
        with pytest.raises(ImageError, match="decompression bomb"):
            call(data)


def test_exif_orientation_is_ignored_unless_asked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = encode(PHOTO, "jpg", exif=exif)
    upright = decode(encode(PHOTO, "jpg"))
    np.testing.assert_array_equal(decode(data), upright)
    np.testing.assert_array_equal(decode(data, exif="apply"), np.rot90(upright, -1))
    np.testing.assert_array_equal(decode(encode(PHOTO, "jpg"), exif="apply"), upright)


def test_pillows_warnings_stay_in_and_filters_are_put_back() -> None:
    damaged = encode(PHOTO, "jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\0\0")
    warning = _with_transparency()
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                decode(damaged, exif="apply")
                decode(warning)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="of ours"):
        warnings.warn("one of ours", stacklevel=1)


def _png(depth: int, colour: int, row: bytes, size: tuple[int, int] = (4, 4)) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    pixels = zlib.compress(row * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
