"""A sheet of the images that a search found, with their cosines and the boxes of what was sought."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..answers import Hit
from ..heatmap.fonts import find_fonts
from ..heatmap.writing import MORE, PAPER, clean, typeset, wrap, write

_TILE, _GAP, _LINE, _FONT, _MOST_COLUMNS = 240, 16, 20, 15, 4
_NOTES = "., #-" + string.digits
_FRAME, _MISSING = "#e4572e", "#d8d8d8"


def draw_hits(hits: Sequence[Hit], images: Sequence[Image.Image | None]) -> Image.Image:
    """Draw hits in rows, nearest first, each under its rank, cosine and name.

    Args:
        hits: what was found.
        images: the image of each, RGB; None if it cannot be read, which is drawn as a grey tile.
    """
    columns = min(_MOST_COLUMNS, max(1, len(hits)))
    rows = -(-len(hits) // columns)
    height = _TILE + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, max(1, rows) * height + _GAP), PAPER)
    names = [clean(Path(hit.image).name) for hit in hits]
    fonts = find_fonts([*names, _NOTES, MORE], None)
    more = typeset(MORE, fonts) or []
    for number, (hit, name, image) in enumerate(zip(hits, names, images, strict=True)):
        left = _GAP + number % columns * (_TILE + _GAP)
        top = _GAP + number // columns * height
        cosine = hit.cosine if hit.finest is None else hit.finest
        for line, text in enumerate((f"{number + 1}. {cosine:.4f}", name)):
            pieces = typeset(text, fonts) or []
            lines = wrap(pieces, more, _FONT, _TILE, 1)
            if lines:
                write(sheet, (left, top + line * _LINE), (_TILE, _LINE), lines[0], _FONT)
        sheet.paste(_tile(hit, image), (left, top + 2 * _LINE))
    return sheet


def _tile(hit: Hit, image: Image.Image | None) -> Image.Image:
    """An image in the middle of a tile, with its box."""
    tile = Image.new("RGB", (_TILE, _TILE), PAPER)
    if image is None:
        ImageDraw.Draw(tile).rectangle((0, 0, _TILE - 1, _TILE - 1), fill=_MISSING)
        return tile
    scale = _TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
    tile.paste(small, (left, top))
    if hit.box is not None:
        x1, y1, x2, y2 = (value * scale for value in hit.box)
        frame = left + x1, top + y1, max(left + x1 + 1, left + x2 - 1), max(top + y1 + 1, top + y2 - 1)
        ImageDraw.Draw(tile).rectangle(frame, outline=_FRAME, width=3)
    return tile
