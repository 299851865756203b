"""The picture of `kdpipe erf`: heat maps side by side, each with its model's name under it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kdpipe.erf import squares
from kdpipe.errors import ConfigError
from kdpipe_stages.view_sheet import wrapped

_SIDE = 320  # pixels of a heat map on the sheet
_GAP, _LINE = 8, 13
# Colours of 0, 1/4, 1/2, 3/4 and 1: each lighter than the one before, so that a grey print can be read too.
_SCALE = np.array([(12, 10, 40), (90, 24, 110), (190, 50, 80), (245, 140, 40), (255, 250, 200)])
_OUTLINES = {0.5: (90, 200, 250), 0.99: (230, 230, 230)}


def sheet(fields: Sequence[tuple[np.ndarray, str, str]]) -> Image.Image:
    """All heat maps in a row, with the squares of 50 and 99 %.

    Args:
        fields: heat map float64 (S, S) from 0 to 1, and two lines of text, for each model.
    """
    tiles = []
    for heat, *lines in fields:
        tile, size = coloured(heat), len(heat)
        for (share, colour), square in zip(_OUTLINES.items(), squares(heat, list(_OUTLINES)), strict=True):
            left = max(0, size // 2 - square.side // 2)
            edges = [round(at * _SIDE / size) for at in (left, left + square.side)]
            ImageDraw.Draw(tile).rectangle((edges[0], edges[0], edges[1] - 1, edges[1] - 1), outline=colour)
            lines.append(f"{share:.0%} in {square.side} of {size} pixels")
        tiles.append((tile, [part for line in lines for part in wrapped(line, _SIDE)]))
    height = _SIDE + 2 * _GAP + 3 + _LINE * max(len(text) for _, text in tiles)
    out = Image.new("RGB", (_GAP + (_SIDE + _GAP) * len(tiles), height), "white")
    draw = ImageDraw.Draw(out)
    for n, (tile, text) in enumerate(tiles):
        left = _GAP + (_SIDE + _GAP) * n
        out.paste(tile, (left, _GAP))
        for row, line in enumerate(text):
            draw.text((left, _GAP + _SIDE + 3 + _LINE * row), line, fill="black")
    return out


def coloured(heat: np.ndarray) -> Image.Image:
    """A heat map as a picture of 320 pixels; of a larger one means over the pixels that become one, over their peak."""
    resample = Image.Resampling.BOX if len(heat) > _SIDE else Image.Resampling.NEAREST
    small = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((_SIDE, _SIDE), resample))
    place = small / small.max() * (len(_SCALE) - 1)
    stops = np.arange(len(_SCALE))
    channels = [np.interp(place, stops, _SCALE[:, c]) for c in range(3)]
    return Image.fromarray(np.rint(np.stack(channels, axis=2)).astype(np.uint8))


def check_out(out: str) -> None:
    """Refuse before minutes of work what `save` would refuse after them.

    Raises:
        ConfigError: a folder, or below something that is no folder or not to be written to.
    """
    path = Path(out).absolute()
    there = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError("the picture can't be written there", where=out, do="Choose another --out")
