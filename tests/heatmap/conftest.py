"""Fonts that tests make."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import newTable
from fontTools.ttLib.tables.sbixGlyph import Glyph as PictureGlyph
from fontTools.ttLib.tables.sbixStrike import Strike
from fontTools.ttLib.tables.TupleVariation import TupleVariation
from PIL import Image

from fgclip_rt.heatmap import fonts

MakeFont = Callable[..., Path]

_WEIGHTS = ((100, "Thin"), (500, "Regular"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all fonts of the system, in place of those that the machine happens to have."""
    path = tmp_path / "fonts"
    path.mkdir()
    monkeypatch.setattr(fonts, "font_folders", lambda: iter([path]))
    return path


@pytest.fixture
def make_font(folder: Path) -> MakeFont:
    """Writes a font that has the given characters, each as a bar of its own width, or without ink."""

    def make(name: str, characters: str, *, ink: bool = True) -> Path:
        names = [f"glyph{number}" for number in range(len(characters))]
        builder = _builder(names, characters)
        bars = [_bar(100 + 20 * number) if ink else _bar(0) for number in range(len(characters))]
        builder.setupGlyf(dict(zip([".notdef", *names], [_bar(900), *bars], strict=True)))
        builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
        return _save(builder, folder / name)

    return make


@pytest.fixture
def make_variable_font(folder: Path) -> MakeFont:
    """Writes a font whose bars are as wide as its weight, 100 by default and 500 under the name Regular."""

    def make(name: str, characters: str) -> Path:
        names = [f"glyph{number}" for number in range(len(characters))]
        builder = _builder(names, characters)
        builder.setupGlyf(dict(zip([".notdef", *names], [_bar(900), *[_bar(100)] * len(names)], strict=True)))
        builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
        builder.setupNameTable({"familyName": "Test", "styleName": "Thin"})
        weights = [{"location": {"wght": weight}, "stylename": style} for weight, style in _WEIGHTS]
        builder.setupFvar([("wght", 100, 100, 500, "Weight")], weights)
        # Points of a bar, and four that stand for its metrics.
        wider = [(0, 0), (0, 0), (400, 0), (400, 0), *[(0, 0)] * 4]
        builder.setupGvar({each: [TupleVariation({"wght": (0.0, 1.0, 1.0)}, wider)] for each in names})
        return _save(builder, folder / name)

    return make


@pytest.fixture
def make_picture_font(folder: Path) -> MakeFont:
    """Writes a font of red pictures in one size of 32 pixels, as colour emoji are, with digits and a space too."""

    def make(name: str, characters: str) -> Path:
        characters += "0123456789 "
        names = [f"glyph{number}" for number in range(len(characters))]
        builder = _builder(names, characters)
        builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
        data = io.BytesIO()
        Image.new("RGBA", (32, 32), "#ff0000").save(data, "PNG")
        strike = Strike(ppem=32, resolution=72)
        strike.glyphs = {each: PictureGlyph(each, graphicType="png ", imageData=data.getvalue()) for each in names}
        strike.glyphs[".notdef"] = PictureGlyph(".notdef")
        table: Any = newTable("sbix")
        table.version, table.flags, table.numStrikes, table.strikes = 1, 1, 1, {32: strike}
        builder.font["sbix"] = table
        return _save(builder, folder / name)

    return make


def _builder(names: list[str], characters: str) -> FontBuilder:
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap(dict(zip(map(ord, characters), names, strict=True)))
    return builder


def _save(builder: FontBuilder, path: Path) -> Path:
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    if "name" not in builder.font:
        builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.setupMaxp()
    builder.save(path)
    return path


def _bar(width: int) -> Any:
    pen = TTGlyphPen(None)
    if width:
        pen.moveTo((0, 0))
        for point in ((0, 700), (width, 700), (width, 0)):
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()
