"""Encoded images to pixels: one decoder, chosen once, because the cache guarantees exactly these pixels.

The pixels are Pillow's, which timm trains on. A JPEG of three channels is decoded by OpenCV: the same library with the
same settings inside, and so the same pixels, without Pillow's copy through four bytes a pixel, which is a quarter
of the time. Whatever OpenCV refuses goes to Pillow, which decides and gives the reason.
"""

import io
import warnings
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow_version

from kdpipe.errors import ImageError

# Pillow warns of corrupt EXIF, odd palettes and large images; no user can act on it in the middle of a run.
warnings.filterwarnings("ignore", module=r"PIL\.")

Exif = Literal["ignore", "apply"]

# Suffixes of images; whether it is one of the formats read here depends on its content.
EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "img", "image"}
    | {"bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif", "heic", "jp2", "jxl"}
)
_FORMATS = ("JPEG", "PNG", "WEBP")
# Formats that Pillow reads, by what stands at byte 0 or 4.
_OTHERS = (
    *((0, b"GIF8", "GIF"), (0, b"BM", "BMP"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF")),
    *((4, b"ftypavif", "AVIF"), (4, b"ftypavis", "AVIF"), (0, b"\xff\x0a", "JPEG XL"), (4, b"JXL \r\n", "JPEG XL")),
)
CONVERT = "kdpipe prepare folder --convert png encodes a folder of such images again, without loss"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
_ORIENTATION = 0x0112
# One image takes up to 8 bytes a pixel while it is decoded, and every render thread may have one.
MAX_PIXELS = 2**26
# The smallest file of so many pixels. Huffman codes have at least one bit a block of 8 x 8 pixels, and deflate packs at
# most 1,032 bytes into one. WebP's arithmetic codes have no such bound.
_JPEG_PIXELS_A_BYTE, _PNG_BYTES_A_BYTE = 8 * 64, 1032
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# What a decoder leaves where a JPEG's data end early (inverted in CMYK), and bits that would fill such a place.
_GREY, _FILLING = (127, 128), bytes([0x5A, 0xA5, 0x3C, 0x96] * 16)
_AS_IT_IS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def identify(data: bytes | bytearray | memoryview) -> Literal["jpeg", "png", "webp"] | None:
    """The file's format by its first bytes, whatever its name."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(_PNG):
        return "png"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webp"
    return None


def other_format(head: bytes) -> str | None:
    """The name of a format that Pillow reads and `decode` doesn't, of its first 12 bytes."""
    return next((name for at, begin, name in _OTHERS if head[at:].startswith(begin)), None)


def check(data: bytes | bytearray | memoryview) -> None:
    """Read the header only: is this an image of a format and depth that `decode` takes?

    Raises:
        ImageError: no image by content, an unreadable header, 16 bits a channel, more than 2**26 pixels, or more than
            so few bytes can hold.
    """
    with _open(data):
        pass


def decode(data: bytes | bytearray | memoryview, exif: Exif = "ignore") -> np.ndarray:
    """An encoded image as uint8 (height, width, 3) RGB, contiguous and writable.

    Grey, palette, alpha and CMYK become RGB as Pillow's `convert("RGB")` makes them, which is what timm and
    torchvision train on. `exif="apply"` turns the image by its EXIF orientation; the default ignores it.

    Raises:
        ImageError: as `check`, and when the image is truncated or corrupt; some damage inside a JPEG that Pillow
            refuses passes here, as grey or shifted parts, and is found by `verify`.
    """
    with _open(data) as image:
        turned = exif == "apply" and image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) != 1
        if image.format == "JPEG" and image.mode == "RGB" and not turned:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_IT_IS)
            if pixels is not None and pixels.shape == (image.height, image.width, 3):
                return pixels
        return _by_pillow(image, exif)


def verify(data: bytes | bytearray | memoryview) -> None:
    """Decode with Pillow, the stricter of the two; for the first check of an image.

    Raises:
        ImageError: as `check`, and when the image is truncated or corrupt; also where a JPEG's data end early but for a
            sound end marker, which decoders fill up in grey.
    """
    with _open(data) as image:
        pixels = _by_pillow(image, "ignore")
        corner: Any = image.getpixel((image.width - 1, image.height - 1))
        grey = image.format == "JPEG" and np.isin(corner, _GREY).all()
    if grey and _ends_early(bytes(data), pixels):
        raise ImageError("the image is truncated or corrupt (its data end before its last pixel)")


def _ends_early(data: bytes, pixels: np.ndarray) -> bool:
    """Whether more data before the end marker would change pixels, which they can't if all are there."""
    end = data.rfind(b"\xff\xd9")
    try:
        with _open(data[:end] + _FILLING + data[end:]) as image:
            return end >= 0 and not np.array_equal(_by_pillow(image, "ignore"), pixels)
    except ImageError:
        return True


def _by_pillow(image: Image.Image, exif: Exif) -> np.ndarray:
    try:
        turned = exif == "apply" and image.getexif().get(_ORIENTATION, 1) != 1
        picture = ImageOps.exif_transpose(image) if turned else image
        return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error: Pillow has no class of its own
        raise ImageError(f"the image is truncated or corrupt ({_said(error)})") from error


def versions() -> dict[str, str]:
    """The libraries that decode, for a cache's provenance."""
    return {"pillow": pillow_version} | {n: str(features.version(n)) for n in ("libjpeg_turbo", "webp")}


def _open(data: bytes | bytearray | memoryview) -> Image.Image:
    kind = identify(data)
    if kind is None:
        shown = bytes(data[:8]).hex(" ") or "nothing"
        raise ImageError("not a JPEG, PNG or WebP image", found=f"first bytes {shown}")
    # IHDR comes first in every PNG: its depth byte is the 25th. Pillow would cut 16 bits to 8 without a warning.
    if kind == "png" and len(data) > _PNG_DEPTH and data[_PNG_DEPTH] > 8:
        raise ImageError("the image has more than 8 bits a channel", found=data[_PNG_DEPTH], allowed="1 to 8")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("a decompression bomb", found=_said(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the {kind.upper()} header can't be read") from error
    _require_size(image, kind, data)
    return image


def _require_size(image: Image.Image, kind: str, data: bytes | bytearray | memoryview) -> None:
    """Before anything is decoded: could so many pixels be in so few bytes, and be decoded in so much memory?"""
    width, height = image.size
    if width * height > MAX_PIXELS:
        do = "Shrink it"
        raise ImageError("the image is too large", found=f"{width} x {height}", allowed=f"{MAX_PIXELS} pixels", do=do)
    least = 0
    if kind == "jpeg":
        least = width * height // _JPEG_PIXELS_A_BYTE
    elif kind == "png":
        bits = data[_PNG_DEPTH] * _PNG_CHANNELS.get(data[_PNG_DEPTH + 1], 1)
        least = height * (width * bits // 8) // _PNG_BYTES_A_BYTE
    if len(data) < least:
        what = "the image is truncated or corrupt: its header claims more pixels than its bytes can hold"
        raise ImageError(what, found=f"{width} x {height} in {len(data)} bytes", allowed=f"at least {least} bytes")


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
