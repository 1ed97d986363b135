"""The picture of a heat map."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..arrays import FloatArray
from .fonts import Fonts, clusters, find_fonts
from .layout import TITLE_LINES, Layout, plan
from .scales import Scale
from .writing import INK, MORE, PAPER, Piece, clean, typeset, wrap, write

#: Share of the map's colours where it lies over the photo.
OVERLAY_STRENGTH = 0.6

#: Our own words in titles: of the photo, and of a map whose text is empty or that no font can write.
_IMAGE, _NUMBERED = "image", "text "

#: x1, y1, x2, y2 in pixels.
Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image: RGB; the photo first, and then a map per text.
        tiles: where the photo and the maps are in it, xyxy in pixels.
        bars: where the colour bars are in it, xyxy in pixels: one per map, or one if all maps have one scale.
        unlabelled: texts that no font on this machine can write; their maps carry their numbers instead.
        lacking: the characters of these texts that are in no font.
    """

    image: Image.Image
    tiles: tuple[Box, ...]
    bars: tuple[Box, ...]
    unlabelled: tuple[str, ...]
    lacking: frozenset[str]


class _Cell(NamedTuple):
    """Writing above a tile: lines of a title, and a line of numbers."""

    title: list[list[Piece]]
    note: str


def draw(
    photo: Image.Image,
    maps: FloatArray,
    texts: Sequence[str],
    scales: Sequence[Scale],
    *,
    overlay: bool = False,
    font: Path | None = None,
) -> Picture:
    """Draw a photo and one map per text, with titles and colour bars.

    Each patch is a rectangle of one colour. Maps with one scale share one bar, at the foot of the picture.

    Args:
        photo: the image, RGB.
        maps: cosines, float32 [m, h, w].
        texts: m titles.
        scales: of the m maps.
        overlay: lay the maps over the photo in grey, at the photo's own resolution if the picture then fits.
        font: font file for the titles, tried before all others; None looks for fonts that have their characters.

    Raises:
        ArgumentError: ``font`` cannot be read, or the picture would be too large.
    """
    grid = maps.shape[1], maps.shape[2]
    layout = plan(photo.size, grid, len(maps), overlay=overlay)
    titles = [clean(text) for text in texts]
    fonts = find_fonts([*titles, _IMAGE, _NUMBERED, MORE, string.digits], font)
    lacking = frozenset(cluster for title in titles for cluster in clusters(title)).difference(*fonts.values())
    unlabelled = [text for text, title in zip(texts, titles, strict=True) if not lacking.isdisjoint(clusters(title))]
    cells = _cells(photo.size, maps, titles, layout, fonts)
    shared = len(maps) > 1 and len(set(scales)) == 1
    canvas, tops = _canvas(cells, layout, shared)
    small = photo.resize(layout.tile, Image.Resampling.LANCZOS, reducing_gap=3.0)
    tiles, bars = [], []
    for index, cell in enumerate(cells):
        left = layout.gap + index % layout.columns * (layout.cell_width + layout.gap)
        top = tops[index // layout.columns]
        bottom = top + layout.tile[1]
        _write_above(canvas, (left, top), cell, layout)
        tiles.append((left, top, left + layout.tile[0], bottom))
        if index == 0:
            canvas.paste(small, (left, top))
            continue
        values, scale = maps[index - 1], scales[index - 1]
        canvas.paste(_tile(small, values, scale, overlay), (left, top))
        if not shared:
            bars.append(_draw_bar(canvas, (left, bottom), scale, values, layout))
    if shared:
        bars.append(_draw_bar(canvas, (layout.gap, tops[-1] + layout.tile[1]), scales[0], maps, layout))
    return Picture(canvas, tuple(tiles), tuple(bars), tuple(unlabelled), lacking)


def _cells(
    photo: tuple[int, int], maps: FloatArray, titles: Sequence[str], layout: Layout, fonts: Fonts
) -> list[_Cell]:
    """The cell of the photo and those of the maps. A title that is empty or cannot be written is a number instead."""
    more = typeset(MORE, fonts) or []

    def lines(pieces: Sequence[Piece] | None) -> list[list[Piece]]:
        return wrap(pieces or [], more, layout.title_font, layout.cell_width, TITLE_LINES)

    cells = [_Cell(lines(typeset(_IMAGE, fonts)), f"{photo[0]} x {photo[1]} pixels")]
    for number, (title, values) in enumerate(zip(titles, maps, strict=True), 1):
        pieces = typeset(title, fonts) or typeset(_NUMBERED + str(number), fonts)
        least, largest = float(values.min()), float(values.max())
        decimals = _decimals(least, largest)
        cells.append(_Cell(lines(pieces), f"cosine {least:z.{decimals}f} to {largest:z.{decimals}f}"))
    return cells


def _canvas(cells: Sequence[_Cell], layout: Layout, shared: bool) -> tuple[Image.Image, list[int]]:
    """An empty picture, and where the tiles of each row of cells begin; a row is as high as its longest title asks."""
    tops = []
    y = layout.gap
    for row in range(layout.rows):
        longest = max(len(cell.title) for cell in cells[row * layout.columns : (row + 1) * layout.columns])
        tops.append(y + longest * layout.title_line + layout.value_line)
        y = tops[-1] + layout.tile[1] + layout.gap + (0 if shared else layout.bar_space)
    return Image.new("RGB", (layout.width, y + (layout.bar_space if shared else 0)), PAPER), tops


def _tile(photo: Image.Image, values: FloatArray, scale: Scale, overlay: bool) -> Image.Image:
    """A map in the size of the tile ``photo``; patches keep their edges, because nothing is known between them."""
    colours = Image.fromarray(scale.colours(values)).resize(photo.size, Image.Resampling.NEAREST)
    if not overlay:
        return colours
    # In grey, because the photo's own colours would be taken for cosines.
    return Image.blend(photo.convert("L").convert("RGB"), colours, OVERLAY_STRENGTH)


def _write_above(canvas: Image.Image, at: tuple[int, int], cell: _Cell, layout: Layout) -> None:
    """Write the title and the numbers of a cell whose tile begins at ``at``."""
    left, top = at
    top -= layout.value_line
    baseline = top + round(layout.value_line * 0.7)
    font = ImageFont.load_default(layout.value_font)
    ImageDraw.Draw(canvas).text((left, baseline), cell.note, INK, font=font, anchor="ls")
    for line in reversed(cell.title):
        top -= layout.title_line
        write(canvas, (left, top), (layout.cell_width, layout.title_line), line, layout.title_font)


def _draw_bar(canvas: Image.Image, at: tuple[int, int], scale: Scale, values: FloatArray, layout: Layout) -> Box:
    """Draw the colours of a scale from left to right, with the cosines at its ends and in its middle.

    Args:
        canvas: the picture.
        at: lower left corner of the tile above it.
        scale: the scale.
        values: the cosines that are drawn in it.
        layout: of the picture.

    Returns:
        Where the colours are.
    """
    left, top = at
    width, height = layout.bar
    top += layout.bar_space - height - layout.value_line
    ramp = scale.colours(np.linspace(scale.low, scale.high, width, dtype=np.float32))
    canvas.paste(Image.fromarray(ramp[None]).resize((width, height), Image.Resampling.NEAREST), (left, top))

    decimals = _decimals(*scale)
    low, middle, high = (f"{value:z.{decimals}f}" for value in (scale.low, (scale.low + scale.high) / 2, scale.high))
    # The colours of the ends are also those of all cosines beyond them.
    low += " or less" if values.min() < np.float32(scale.low) else ""
    high += " or more" if values.max() > np.float32(scale.high) else ""
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(layout.value_font)
    baseline = top + height + round(layout.value_line * 0.75)
    pen.text((left, baseline), low, INK, font=font, anchor="ls")
    pen.text((left + width, baseline), high, INK, font=font, anchor="rs")
    if width / 2 > max(map(font.getlength, (low, high))) + font.getlength(middle):
        pen.text((left + width / 2, baseline), middle, INK, font=font, anchor="ms")
    return left, top, left + width, top + height


def _decimals(low: float, high: float) -> int:
    """Decimals that tell the ends of a range, and values between them, apart."""
    span = high - low
    if span <= 0:
        return 3
    # 0.051 - 0.050 is a little less than 0.001.
    magnitude = math.floor(math.log10(span) + 1e-6)
    return min(max(3, 2 - magnitude), 7)
