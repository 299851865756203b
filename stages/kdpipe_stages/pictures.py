"""Writing the pictures that commands draw."""

from pathlib import Path

from PIL import Image

from kdpipe._util.files import atomic_write
from kdpipe.errors import ConfigError


def save(picture: Image.Image, out: str, what: str) -> None:
    """Write a PNG, whole or not at all; `what` it is called if that fails.

    Raises:
        ConfigError: it can't be written.
    """
    try:
        with atomic_write(Path(out).absolute()) as partial:
            picture.save(partial, "PNG")
    except OSError as e:
        do = "Choose another --out, or make room and permission"
        raise ConfigError(f"the {what} can't be written ({e.strerror or e})", where=out, do=do) from e
