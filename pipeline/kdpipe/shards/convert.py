"""Images that shards can't hold as they are, encoded again without loss of the pixels that Pillow makes of them."""

import io
from typing import Literal

import numpy as np
from PIL import Image

from kdpipe.errors import ImageError
from kdpipe.shards import images

Lossless = Literal["png", "webp"]
# As Pillow names them; JXL where a plug-in reads it.
_FORMATS = ("GIF", "BMP", "TIFF", "AVIF", "JXL")
_DEEP = ("I", "F")


def reencoded(data: bytes, kind: Lossless) -> bytes:
    """A GIF, BMP, TIFF, AVIF or JPEG XL, of which the first frame, or a truncated JPEG, as PNG or WebP.

    The pixels are those of Pillow's `convert("RGB")`. Where a JPEG ends early they are what Pillow makes of it with
    LOAD_TRUNCATED_IMAGES, which appends an end marker too.

    Raises:
        ImageError: Pillow doesn't read it, it is too large, or has more than 8 bits a channel.
    """
    pixels = images.decode(data + b"\xff\xd9") if images.identify(data) == "jpeg" else _decoded(data)
    return encoded(Image.fromarray(pixels), kind)


def encoded(picture: Image.Image, kind: Lossless) -> bytes:
    """The bytes of a lossless image file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), **({"lossless": True} if kind == "webp" else {}))
    return buffer.getvalue()


def _decoded(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in _known()]) as image:
            if image.width * image.height > images.MAX_PIXELS:
                found, allowed = f"{image.width} x {image.height}", f"{images.MAX_PIXELS} pixels"
                raise ImageError("the image is too large", found=found, allowed=allowed, do="Shrink it")
            if image.mode.startswith(_DEEP):
                raise ImageError("the image has more than 8 bits a channel", found=image.mode, allowed="8 bits")
            return np.array(image.convert("RGB"))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow has no class of its own
        raise ImageError("the image can't be read", found=f"first bytes {data[:8].hex(' ') or 'none'}") from error


def _known() -> dict[str, object]:
    Image.init()
    return dict(Image.OPEN)
