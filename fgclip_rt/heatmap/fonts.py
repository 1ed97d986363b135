"""Font files that have the characters of a text, found with Pillow alone."""

from __future__ import annotations

import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from ..errors import ArgumentError

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")

#: Seconds after which a search ends: reading 2,000 fonts from a local disk takes one.
_SEARCH_SECONDS = 5.0

#: Beginnings of names of files that are tried first, because they read well; the first are for Chinese.
_PREFERRED = (
    "NotoSansCJK",
    "NotoSansSC",
    "SourceHanSans",
    "PingFang",
    "Hiragino Sans GB",
    "STHeiti",
    "msyh",
    "wqy-",
    "DroidSansFallback",
    "NotoSans",
    "DejaVuSans",
    "Arial Unicode",
    "segoeui",
)
_STYLED = re.compile(r"bold|black|thin|light|medium|italic|oblique|cond|mono|serif|extra|semi", re.IGNORECASE)
#: Fonts that draw a placeholder for every character.
_PLACEHOLDERS = re.compile(r"LastResort|UnicodeBMPFallback", re.IGNORECASE)
#: Faces of these collections are Japanese, Korean, simplified Chinese and so on, in this order.
_CHINESE_FACE = {"NotoSansCJK": 2, "NotoSerifCJK": 2}

#: Sizes in which fonts of bitmaps, such as colour emoji, come.
_BITMAP_SIZES = (109, 160, 136, 128, 96, 64, 32)
_PROBE_SIZE = 16

_JOINER = "\u200d"


@dataclass(frozen=True)
class Face:
    """One font of a font file; ``path`` is None for the font that comes with Pillow."""

    path: Path | None
    index: int = 0


#: Fonts in the order in which they are tried, and the clusters that each of them has.
Fonts: TypeAlias = dict[Face, frozenset[str]]


@lru_cache(maxsize=64)
def open_face(face: Face, size: int, layout: ImageFont.Layout | None = None) -> tuple[FreeTypeFont, float]:
    """A font, and the factor that brings what it draws to ``size`` pixels.

    The factor is 1 but for fonts of bitmaps, which come in few sizes.

    Args:
        face: the font.
        size: in pixels.
        layout: how characters become glyphs; None for the best way that Pillow has.

    Raises:
        OSError: the file is no font that FreeType reads.
    """
    if face.path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, FreeTypeFont)
        return font, 1.0
    for each in (size, *_BITMAP_SIZES):
        try:
            font = ImageFont.truetype(face.path, each, face.index, layout_engine=layout)
            break
        except OSError as error:
            failed = error
    else:
        raise failed
    # A variable font may begin at its thinnest weight. Other fonts do not vary, and some that do lack this name.
    with suppress(OSError, ValueError):
        font.set_variation_by_name("Regular")
    return font, size / each


def find_fonts(texts: Iterable[str], named: Path | None = None) -> Fonts:
    """Fonts that have, together, as many characters of ``texts`` as fonts of this machine do.

    Args:
        texts: all that is to be written.
        named: a font file that comes before all others.

    Returns:
        ``named``, if given; the font that comes with Pillow; and fonts of the system for what these two lack.

    Raises:
        ArgumentError: ``named`` is no font file.
    """
    wanted = frozenset(cluster for text in texts for cluster in clusters(text))
    fonts: Fonts = {}
    if named is not None:
        fonts[Face(named)] = _covered_by_named(named, wanted)
    fonts[Face(None)] = covered(Face(None), wanted)
    lacking = wanted.difference(*fonts.values())
    found = _search(lacking, tuple(font_folders())) if lacking else ()
    return fonts | {face: covered(face, wanted) for face in found}


def check_font(path: Path) -> None:
    """Make sure, before any work is done, that a font can be read.

    Raises:
        ArgumentError: it is no font file.
    """
    _covered_by_named(path, "a")


def clusters(text: str) -> list[str]:
    """Characters with the marks, selectors and joined characters that follow them, which one font must draw."""
    found: list[str] = []
    for character in text:
        follows = unicodedata.category(character)[0] == "M" or character == _JOINER
        if found and (follows or found[-1].endswith(_JOINER)):
            found[-1] += character
        else:
            found.append(character)
    return found


def covered(face: Face, wanted: Iterable[str]) -> frozenset[str]:
    """The clusters of ``wanted`` whose visible characters ``face`` has.

    Raises:
        OSError: the file is no font that FreeType reads.
    """
    # Glyph by glyph: to a mark without a letter, shaping would add a circle.
    font, factor = open_face(face, _PROBE_SIZE, ImageFont.Layout.BASIC)
    if factor != 1:
        # Fonts of pictures also have digits and spaces, as wide as a picture.
        wanted = [cluster for cluster in wanted if not cluster.isascii()]
    # A font draws every character that it lacks with one glyph, that of U+FFFF, which is no character. A font whose
    # glyphs are of a kind that FreeType does not draw leaves no ink.
    lacking = {None, _glyph(font, "\uffff")}
    return frozenset(
        cluster
        for cluster in wanted
        if all(_glyph(font, character) not in lacking for character in cluster if _is_visible(character))
    )


def _covered_by_named(path: Path, wanted: Iterable[str]) -> frozenset[str]:
    try:
        return covered(Face(path), wanted)
    except OSError:
        raise ArgumentError(f"--font {path} is not a font file that can be read; give a .ttf, .otf or .ttc.") from None


def _glyph(font: FreeTypeFont, character: str) -> bytes | None:
    """Pixels of a character; None if there are none."""
    mask = font.getmask(character)
    return None if mask.getbbox() is None else bytes(mask)


def _is_visible(character: str) -> bool:
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return not (character.isspace() or selector or unicodedata.category(character) == "Cf")


@lru_cache(maxsize=64)
def _search(lacking: frozenset[str], folders: tuple[Path, ...]) -> tuple[Face, ...]:
    """Fonts of the system, each of which has some of ``lacking`` that those before it lack."""
    end = time.monotonic() + _SEARCH_SECONDS
    found = []
    for path in font_files(folders):
        if not lacking or time.monotonic() > end:
            break
        face = Face(path, next((i for name, i in _CHINESE_FACE.items() if path.name.startswith(name)), 0))
        try:
            has = covered(face, lacking)
        except OSError:
            continue
        if has:
            found.append(face)
            lacking -= has
    return tuple(found)


@cache
def font_files(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """Font files below ``folders``, those first that read best."""
    paths = [
        Path(folder, name)
        for top in folders
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith(_SUFFIXES) and not _PLACEHOLDERS.search(name)
    ]
    return tuple(sorted(paths, key=_preference))


def _preference(path: Path) -> tuple[bool, int, str, str]:
    name = path.name
    rank = next((i for i, start in enumerate(_PREFERRED) if name.lower().startswith(start.lower())), len(_PREFERRED))
    return _STYLED.search(name) is not None, rank, name, str(path)


def font_folders() -> Iterator[Path]:
    """The folders in which this system keeps fonts; the user's own come first."""
    home = Path.home()
    if sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"))
        # Fonts that macOS downloads, PingFang among them.
        yield from sorted(Path("/System/Library/AssetsV2").glob("com_apple_MobileAsset_Font*"))
    elif sys.platform == "win32":
        yield Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"), "Microsoft/Windows/Fonts")
        yield Path(os.environ.get("WINDIR", "C:/Windows"), "Fonts")
    else:
        yield Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share", "fonts")
        yield home / ".fonts"
        for folder in (os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":"):
            yield Path(folder, "fonts")
