"""Encoded images to pixels: one decoder, chosen once, because the cache promises exactly these pixels.

The pixels are Pillow's, which timm trains on. A JPEG of three channels is decoded by OpenCV: the same library with the
same settings inside, and so the same pixels, without Pillow's copy through four bytes a pixel, which is a quarter
of the time. Whatever OpenCV refuses goes to Pillow, which decides and says why.
"""

import io
import warnings
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow_version

from pipeline.errors import ImageError

# Pillow warns of corrupt EXIF, odd palettes and large images; nobody can act on it in the middle of a run.
warnings.filterwarnings("ignore", module=r"PIL\.")

Exif = Literal["ignore", "apply"]

# The pixels' definition, part of a cache's identity: libjpeg's slow integer DCT with fancy upsampling, then
# Pillow's conversion to RGB. The number changes when these pixels do; libraries' releases are provenance, and
# a cache's canaries notice the release that changes a pixel against its promise.
DECODER: dict[str, str | int] = {"name": "pillow-rgb", "version": 1}

# Names that promise an image; whether it is one of the formats read here, its content tells.
EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "img", "image"}
    | {"bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif", "heic", "jp2", "jxl"}
)
_FORMATS = ("JPEG", "PNG", "WEBP")
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
_ORIENTATION = 0x0112
_AS_IT_IS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def identify(data: bytes | bytearray | memoryview) -> Literal["jpeg", "png", "webp"] | None:
    """What the first bytes say the file is, whatever its name says."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(_PNG):
        return "png"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "webp"
    return None


def check(data: bytes | bytearray | memoryview) -> None:
    """Read the header only: is this an image of a format and depth that `decode` takes?

    Raises:
        ImageError: no image by content, an unreadable header, 16 bits a channel, or a decompression bomb.
    """
    with _open(data):
        pass


def decode(data: bytes | bytearray | memoryview, exif: Exif = "ignore") -> np.ndarray:
    """An encoded image as uint8 (height, width, 3) RGB, contiguous and writable.

    Grey, palette, alpha and CMYK become RGB as Pillow's `convert("RGB")` makes them, which is what timm and
    torchvision train on. `exif="apply"` turns the image as its EXIF orientation says; the default ignores it.

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
    """Decode with Pillow, the stricter of the two; for whoever looks at an image for the first time.

    Raises:
        ImageError: as `check`, and when the image is truncated or corrupt.
    """
    with _open(data) as image:
        _by_pillow(image, "ignore")


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
    # IHDR comes first in every PNG: its depth byte is the 25th. Pillow would cut 16 bits to 8 without a word.
    if kind == "png" and len(data) > _PNG_DEPTH and data[_PNG_DEPTH] > 8:
        raise ImageError("the image has more than 8 bits a channel", found=data[_PNG_DEPTH], allowed="1 to 8")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("a decompression bomb", found=_said(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the {kind.upper()} header can't be read") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
