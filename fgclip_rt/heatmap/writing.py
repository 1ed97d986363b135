"""Lines of text in several fonts, each character in one that has it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from PIL import Image, ImageDraw

from .fonts import Face, Fonts, clusters, open_face

INK, PAPER = "#202020", "#ffffff"

#: Stands where a title is cut.
MORE = "…"

#: Characters of a text that its title is made from, so that a megabyte takes no longer.
_MOST_CHARACTERS = 400
#: Characters that show nothing, or turn the text that follows them, in which a font has no part.
_SPELLED_OUT = ("Cc", "Co", "Cs")
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class Piece(NamedTuple):
    """Characters that stay together, and the font that has them."""

    text: str
    face: Face


def clean(text: str) -> str:
    """The beginning of a text as it is written: composed, on one line, and with control characters spelled out."""
    line = " ".join(unicodedata.normalize("NFC", text[:_MOST_CHARACTERS]).split())
    return "".join(_spelled(character) for character in line) + (MORE if len(text) > _MOST_CHARACTERS else "")


def _spelled(character: str) -> str:
    hidden = unicodedata.category(character) in _SPELLED_OUT or unicodedata.bidirectional(character) in _TURNING
    return character.encode("unicode_escape").decode() if hidden else character


def typeset(text: str, fonts: Fonts) -> list[Piece] | None:
    """The pieces of a text, all in one font if one has all characters; None if a character is in none of ``fonts``."""
    parts = clusters(text)
    for whole, has in fonts.items():
        if has.issuperset(parts):
            return [Piece(part, whole) for part in parts]
    pieces: list[Piece] = []
    for part in parts:
        # A space, a digit or a comma stays in the font of the word before it.
        nearest = [pieces[-1].face] if pieces else []
        face = next((face for face in [*nearest, *fonts] if part in fonts[face]), None)
        if face is None:
            return None
        pieces.append(Piece(part, face))
    return pieces


def length(pieces: Sequence[Piece], size: int) -> float:
    """Width in pixels of a line."""
    total = 0.0
    for face, run in _runs(pieces):
        font, factor = open_face(face, size)
        total += font.getlength(run) * factor
    return total


def wrap(pieces: Sequence[Piece], more: Sequence[Piece], size: int, width: int, most: int) -> list[list[Piece]]:
    """Lines no wider than ``width``; if there are more than ``most``, the last one ends in ``more``."""
    lines: list[list[Piece]] = []
    rest = list(pieces)
    while rest and len(lines) < most:
        count = _fitting(rest, [], size, width)
        if count < len(rest):
            if len(lines) == most - 1:
                lines.append([*rest[: _fitting(rest, more, size, width)], *more])
                break
            count = _break_before(rest, count)
        lines.append(rest[:count])
        rest = rest[count:]
    return lines


def write(
    canvas: Image.Image, at: tuple[int, int], size: tuple[int, int], line: Sequence[Piece], font_size: int
) -> None:
    """Write a line into a strip of the canvas, and nowhere else, however tall its characters are.

    Args:
        canvas: the picture, RGB.
        at: upper left corner of the strip.
        size: (width, height) of the strip.
        line: what is written.
        font_size: in pixels.
    """
    strip = Image.new("RGB", size, PAPER)
    baseline = round(size[1] / 2 + font_size * 0.36)
    left = 0.0
    runs = _runs(line)
    if _reads_from_the_right(line):
        runs.reverse()
    for face, run in runs:
        _write_run(strip, (left, baseline), face, run, font_size)
        left += length([Piece(run, face)], font_size)
    canvas.paste(strip, at)


def _write_run(strip: Image.Image, at: tuple[float, int], face: Face, run: str, size: int) -> None:
    opened, factor = open_face(face, size)
    if factor == 1.0:
        ImageDraw.Draw(strip).text(at, run, INK, font=opened, anchor="ls", embedded_color=True)
        return
    # A font of bitmaps: drawn in the size that it has, and brought to the size of the others.
    left, top, right, bottom = opened.getbbox(run, anchor="ls")
    drawn = Image.new("RGBA", (max(1, round(right - left)), max(1, round(bottom - top))))
    ImageDraw.Draw(drawn).text((-left, -top), run, INK, font=opened, anchor="ls", embedded_color=True)
    small = drawn.resize([max(1, round(side * factor)) for side in drawn.size], Image.Resampling.BOX)
    strip.paste(small, (round(at[0] + left * factor), round(at[1] + top * factor)), small)


def _runs(pieces: Sequence[Piece]) -> list[tuple[Face, str]]:
    return [(face, "".join(piece.text for piece in run)) for face, run in groupby(pieces, lambda piece: piece.face)]


def _reads_from_the_right(line: Sequence[Piece]) -> bool:
    """Whether the first letter is of a script that is written from right to left."""
    directions = (unicodedata.bidirectional(character) for piece in line for character in piece.text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


def _fitting(pieces: Sequence[Piece], more: Sequence[Piece], size: int, width: int) -> int:
    """How many of ``pieces``, followed by ``more``, fit into ``width``; at least one."""
    low, high = 1, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        if length([*pieces[:middle], *more], size) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _break_before(pieces: Sequence[Piece], count: int) -> int:
    """The last place up to ``count`` where a line may end: after a space or beside a wide character."""
    for place in range(count, 0, -1):
        if pieces[place - 1].text == " " or any(_is_wide(piece.text) for piece in pieces[place - 1 : place + 1]):
            return place
    return count


def _is_wide(text: str) -> bool:
    return unicodedata.east_asian_width(text[0]) in ("W", "F")
