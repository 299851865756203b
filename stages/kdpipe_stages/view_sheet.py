"""The sheet of `kdpipe view`: samples, their views, and below each view its random draws."""

import itertools
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdpipe.errors import ConfigError
from kdpipe.shards import BlockReader, Index
from kdpipe.views import Erased, View, ViewsConfig
from kdpipe.views.block import block_views, decode_sample, render_rows
from kdpipe.views.erasing import noise_values

_CELL = 160  # smallest width of a cell: smaller views are shown in larger pixels
_GAP, _LINE = 8, 13
_FONT = ImageFont.load_default()
_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#e67300", "#17a2b8", "#c2188b", "#6b5b00")
_NOISE = np.clip(np.rint(128 + 50 * noise_values()), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Tile:
    """A view of a sample.

    Attributes:
        draws: `BlockViews.draws`, with the partner's key for its row.
        pixels: uint8 (S, S, 3), erased boxes made visible.
        partner: uint8 (S, S, 3), the partner's rendering before mixing; None for an unmixed view.
        crop: left, top, right, bottom of what it shows in the image, pixels; None for evaluation views.
    """

    shard: str
    key: str
    view: View
    draws: dict[str, Any]
    pixels: np.ndarray
    partner: np.ndarray | None
    crop: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class ViewedSample:
    """A decoded image, uint8 (H, W, 3), what is known of it, and its views."""

    image: np.ndarray
    facts: list[str]
    tiles: list[Tile]


def find(index: Index, wanted: Iterable[str]) -> list[int]:
    """Rows of samples that are named KEY or SHARD:KEY.

    Raises:
        ConfigError: there is none, or several shards have one.
    """
    found: dict[str, list[int]] = {name: [] for name in wanted}
    for shard in index.shards:
        keys = index.keys(shard.first, shard.first + shard.samples)
        for name, rows in found.items():
            rows += [shard.first + keys.index(k) for k in {name, name.removeprefix(f"{shard.name}:")} if k in keys]
    for name, rows in found.items():
        if not rows:
            some = ", ".join(index.keys(0, min(3, len(index))))
            raise ConfigError("no such sample", where="--key", found=name, allowed=f"{some}, ...")
        if len(rows) > 1:
            some = ", ".join(f"{index.shard_of(row).name}:{index.key(row)}" for row in rows[:3])
            raise ConfigError("several shards have this key", where="--key", found=name, allowed=some)
    return [row for rows in found.values() for row in rows]


def look(
    reader: BlockReader, config: ViewsConfig, row: int, views: Sequence[View], size: int, pool: ThreadPoolExecutor
) -> ViewedSample:
    """Render views of one sample of the `paired_index`, with their draws."""
    index = reader.index
    block, shard, key = index.block_of(row), index.shard_of(row).name, index.key(row)
    first = index.rows(block).start
    image = decode_sample(index, row, reader.image(row), config)
    height, width = image.shape[:2]
    rendered = render_rows(reader, config, range(row, row + 1), views, size, pool)
    tiles = []
    for v, name in enumerate(views):
        drawing = block_views(index, config, block, name)
        draws, other = drawing.draws(row - first, height, width, size), None
        partner = drawing.partner(row - first)
        if partner is not None:
            there = first + partner
            other = np.empty((size, size, 3), np.uint8)
            drawing.render(partner, decode_sample(index, there, reader.image(there), config), other)
            draws["partner"] = index.key(there)
        pixels = visible(rendered.pixels[v, 0], rendered.erased[v])
        tiles.append(Tile(shard, key, name, draws, pixels, other, _crop(draws, config, height, width, size)))
    label = int(index.labels[row])
    class_name = f" ({index.classes[label]})" if index.classes and 0 <= label < len(index.classes) else ""
    facts = [f"{height} x {width} pixels", f"label {label}{class_name}" if label >= 0 else "no label"]
    return ViewedSample(image, [shard, *facts, "(boxes: height x width at row, column)"], tiles)


def visible(pixels: np.ndarray, erased: Erased | None) -> np.ndarray:
    """A view, uint8 (S, S, 3), with erased boxes as they look after normalisation: grey for 0, noise around it."""
    shown = pixels.copy()
    if erased is None:
        return shown
    for top, left, h, w in erased.boxes[0].tolist():
        place = np.s_[top : top + h, left : left + w]
        shown[place] = _NOISE[pixels[place]] if erased.noise else 128
    return shown


def caption(draws: dict[str, Any], config: ViewsConfig) -> list[str]:
    """A view's draws for people; boxes as height x width at row, column."""
    if not draws:
        return ["no draws"]
    box = draws["box"]
    shape, place = f"{box['height']} x {box['width']}", f"{box['top']}, {box['left']}"
    lines = [f"crop {shape} at {place}" if config.train_crop_mode == "rrc" else f"resized to {shape}, cut at {place}"]
    if config.interpolation == "random":
        lines.append(draws["interpolation"])
    lines += [text for flip, text in (("hflip", "mirrored"), ("vflip", "upside down")) if draws[flip]]
    lines += [name if argument is None else f"{name} {argument:.3g}" for name, argument, _ in draws["operations"]]
    lines += [f"erased {h} x {w} at {top}, {left}" for top, left, h, w in draws["erased"]]
    if draws["partner"] is not None:
        kind, patch = "mixup", ""
        if draws["cutmix"] is not None:
            top, left, bottom, right = draws["cutmix"]
            kind, patch = "cutmix", f", {bottom - top} x {right - left} at {top}, {left}"
        lines.append(f"{kind} with {draws['partner']}, lam {draws['lam']:.3f}{patch}; the partner's own view:")
    return lines


def sheet(samples: Sequence[ViewedSample], config: ViewsConfig, size: int) -> Image.Image:
    """All samples on one picture, a row each; views of 160 pixels and more are shown pixel by pixel."""
    zoom = max(1, _CELL // size)
    side = max(_CELL, zoom * size)
    rows = []
    for sample in samples:
        height, width = sample.image.shape[:2]
        scale = side / max(height, width)
        whole = Image.fromarray(sample.image).resize([max(1, round(n * scale)) for n in (width, height)])
        cells = []
        for tile, colour in zip(sample.tiles, itertools.cycle(_COLOURS)):
            if tile.crop is not None:
                left, top, right, bottom = (round(n * scale) for n in tile.crop)
                corners = (left, top, max(left, right - 1), max(top, bottom - 1))
                ImageDraw.Draw(whole).rectangle(corners, outline=colour, width=2)
            own = Image.fromarray(tile.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1))
            partner = None if tile.partner is None else Image.fromarray(tile.partner).resize((side // 2, side // 2))
            cells.append(_cell(side, own, colour, [f"view {tile.view}", *caption(tile.draws, config)], partner))
        rows.append([_cell(side, whole, "black", [sample.tiles[0].key, *sample.facts], None), *cells])
    heights = [max(cell.height for cell in row) + _GAP for row in rows]
    out = Image.new("RGB", (_GAP + (side + _GAP) * max(map(len, rows)), _GAP + sum(heights)), "white")
    for y, row in zip(itertools.accumulate([_GAP, *heights]), rows, strict=False):
        for n, cell in enumerate(row):
            out.paste(cell, (_GAP + (side + _GAP) * n, y))
    return out


def _cell(side: int, picture: Image.Image, colour: str, text: list[str], below: Image.Image | None) -> Image.Image:
    """A picture, a title in its colour, lines of text, and maybe another picture."""
    lines = [part for line in text for part in wrapped(line, side)]
    top = side + 3 + _LINE * len(lines)
    cell = Image.new("RGB", (side, top + (below.height + 3 if below else 0)), "white")
    cell.paste(picture)
    draw = ImageDraw.Draw(cell)
    titles = len(wrapped(text[0], side))
    for n, line in enumerate(lines):
        draw.text((0, side + 3 + _LINE * n), line, fill=colour if n < titles else "black", font=_FONT)
    if below is not None:
        cell.paste(below, (0, top + 3))
    return cell


def wrapped(text: str, width: int) -> list[str]:
    """Lines that fit; a word that is longer than a line is cut. What PIL's own font may lack becomes "?"."""
    lines = [""]
    for word in re.findall(r"\S+\s*", text.encode("ascii", "replace").decode()):
        if lines[-1] and _FONT.getlength((lines[-1] + word).rstrip()) > width:
            lines.append("")
        for letter in word:
            if _FONT.getlength((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _crop(
    draws: dict[str, Any], config: ViewsConfig, height: int, width: int, size: int
) -> tuple[float, float, float, float] | None:
    """What a view shows of its image: left, top, right, bottom in pixels; None for evaluation views."""
    if not draws:
        return None
    box = draws["box"]
    if config.train_crop_mode == "rrc":
        return box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]
    x, y = width / box["width"], height / box["height"]
    return box["left"] * x, box["top"] * y, (box["left"] + size) * x, (box["top"] + size) * y
