"""Heat maps of dense features: a picture of each text's cosines over an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import ByteArray, FloatArray
from .errors import ArgumentError

# Five colours of viridis (matplotlib, CC0), which the FG-CLIP 2 README uses; the colours between them are interpolated.
_COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_TILE, _LEAST_TILE, _GAP, _LABEL, _COLUMNS = 420, 48, 12, 30, 3
_LONGEST_LABEL = 200  # characters; more fit on no tile
_INK, _PAPER = "#202020", "#ffffff"

# Fonts with Chinese characters that systems commonly have; Pillow finds them by file name in the system's folders.
_CJK_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
)


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image: tiles, the photo first and then a map per text.
        unlabelled: texts that no font on this machine can write; their tiles show their numbers instead.
    """

    image: Image.Image
    unlabelled: tuple[str, ...]


def largest_at(values: FloatArray, size: tuple[int, int]) -> tuple[float, float]:
    """Centre (x, y) of the patch where a map [h, w] is largest, in pixels of an image of ``size`` (width, height)."""
    rows, columns = values.shape
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (float(column) + 0.5) / columns * size[0], (float(row) + 0.5) / rows * size[1]


def draw(photo: Image.Image, maps: FloatArray, texts: Sequence[str], font: Path | None = None) -> Picture:
    """Draw ``photo`` and one map per text, each coloured from its own least to its own largest cosine.

    Args:
        photo: the image, RGB.
        maps: float32 [m, h, w].
        texts: m labels.
        font: font file for the labels; None looks for one that has their characters.

    Raises:
        ArgumentError: ``font`` cannot be read.
    """
    size = _tile_size(photo)
    tiles: list[tuple[Image.Image, str]] = [(photo.resize(size, Image.Resampling.LANCZOS), "image")]
    unlabelled = []
    fonts = _fonts(font)
    for number, (full_text, values) in enumerate(zip(texts, maps, strict=True), 1):
        text = full_text[:_LONGEST_LABEL]
        colours = Image.fromarray(_colour(values)).resize(size, Image.Resampling.NEAREST)
        if _font_for(fonts, text) is None:
            unlabelled.append(full_text)
            text = f"text {number}"
        tiles.append((colours, text))

    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = (size[0] + _GAP, size[1] + _LABEL + _GAP)
    canvas = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, (tile, label) in enumerate(tiles):
        left, top = _GAP + index % columns * cell[0], _GAP + index // columns * cell[1]
        label_font = _font_for(fonts, label) or fonts[0]
        pen.text((left, top + _LABEL // 2), _shorten(label, label_font, size[0]), _INK, font=label_font, anchor="lm")
        canvas.paste(tile, (left, top + _LABEL))
    return Picture(canvas, tuple(unlabelled))


def _tile_size(photo: Image.Image) -> tuple[int, int]:
    scale = _TILE / max(photo.size)
    width, height = (max(_LEAST_TILE, round(side * scale)) for side in photo.size)
    return width, height


def _colour(values: FloatArray) -> ByteArray:
    """Colours uint8 [h, w, 3]; a constant map takes the lowest colour."""
    spread = float(values.max() - values.min())
    position = (values - values.min()) / (spread if spread > 0 else 1.0)
    stops = np.linspace(0, 1, len(_COLOURS))
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in _COLOURS])
    channels = [np.interp(position, stops, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _fonts(font: Path | None) -> list[Any]:
    size = _LABEL * 3 // 5
    if font is not None:
        try:
            return [ImageFont.truetype(font, size)]
        except OSError:
            raise ArgumentError(
                f"--font {font} is not a font file that can be read; give a .ttf, .otf or .ttc."
            ) from None
    fonts: list[Any] = [ImageFont.load_default(size)]
    for name in _CJK_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return fonts


def _font_for(fonts: Sequence[Any], text: str) -> Any | None:
    """The first font that has a glyph for every character of ``text``."""
    return next((font for font in fonts if _covers(font, text)), None)


def _covers(font: Any, text: str) -> bool:
    # A font draws every character that it lacks with one glyph, that of U+FFFF, which is no character.
    missing = bytes(font.getmask("\uffff"))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in text)


def _shorten(label: str, font: Any, width: int) -> str:
    label = " ".join(label.split())
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "...") > width:
        label = label[:-1]
    return label + "..."
